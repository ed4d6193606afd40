"""How the artifacts are made: SFT, the two-label reward, groups. Which and when is `pipeline.py`'s business."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from imdb_rlhf.algos.sft import SFT, held_out_loss
from imdb_rlhf.algos.two_label import TwoLabel, crop, make_head, ngram_accuracy
from imdb_rlhf.config import Crop, Eos, OptimConfig, PreferenceRun, PretrainedModel, Run, ScratchModel, TwoLabelReward
from imdb_rlhf.data import groups, hub
from imdb_rlhf.data.prompts import Encode
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.evaluation import record
from imdb_rlhf.evaluation.policy import completion_text
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.logprobs import Rows, sequence_logprobs
from imdb_rlhf.models.policy import Policy, decode
from imdb_rlhf.models.sampling import batches_by_length, sample, uniforms
from imdb_rlhf.rewards import Reward
from imdb_rlhf.rewards.classifier import ClassifierReward
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.tracking.jsonl import JsonlLog
from imdb_rlhf.training import checkpoint, loop
from imdb_rlhf.training.runtime import Runtime

HELD_OUT_ROWS = 512  # SFT rows that are kept back to measure its loss


class Tools:
    """What making an artifact needs: the configuration, the machine, and somebody to tell."""

    def __init__(self, run: Run, runtime: Runtime, console: Console) -> None:
        self.run, self.runtime, self.console = run, runtime, console

    def encoder(self, tokenizer: PreTrainedTokenizerBase) -> Encode:
        """Texts to tokens, without special ones and without a warning about length."""

        def encode(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

        return encode

    def check_model(self, folder: Path, key: str) -> None:
        """Refuse a model that exists whose tokenizer is another's, or that reads shorter rows than are wanted.

        Raises:
            RunError: no tokenizer, or one of another vocabulary.
            ConfigError: naming both lengths.
        """
        try:
            config = AutoConfig.from_pretrained(folder)
        except Exception as error:
            raise RunError(f"{key}={folder}: its config.json cannot be used: {str(error).splitlines()[0]}") from error
        policies.check_vocabulary(config.vocab_size, policies.load_tokenizer(folder, key), folder, key)
        context = policies.context_length(config)
        prompt, new = self.run.data.prompts.max_tokens, self.run.generation.max_new_tokens
        appended = isinstance(self.run, PreferenceRun) and self.run.groups.eos == Eos.appended
        if prompt + new + appended > context:
            raise ConfigError(
                f"data.prompts.max_tokens={prompt} + generation.max_new_tokens={new} is longer than the {context} "
                f"tokens that {key}={folder} reads; shorten them"
            )
        if self.run.sft.path is None and self.run.sft.max_tokens > context:
            raise ConfigError(
                f"sft.max_tokens={self.run.sft.max_tokens} is longer than the {context} tokens that {key}={folder} "
                "reads; shorten it"
            )

    def parameters(self) -> int:
        """Number of parameters of the policy, without loading it."""
        model = self.run.model
        if isinstance(model, ScratchModel) and self.run.sft.path is None:
            return model.vocabulary * model.width + model.context * model.width + 12 * model.layers * model.width**2
        path = self.run.sft.path or (model.path if isinstance(model, PretrainedModel) else "")
        if hub.is_folder(path):
            return policies.parameters_of(Path(path).expanduser())
        return 774_030_080 if "large" in path else 124_439_808

    def settings(self, seed: int, optim: OptimConfig, evaluate_every: int | None = None) -> loop.Settings:
        """The loop's settings for one stage."""
        trainer = self.run.trainer
        return loop.Settings(
            seed, optim, trainer.micro_batch, trainer.checkpoint_every, trainer.log_every, evaluate_every
        )

    def train(self, algorithm: loop.Algorithm, settings: loop.Settings, folder: Path) -> None:
        """Train an artifact's model with progress and `metrics.jsonl`, going on from a checkpoint if there is one."""
        found = checkpoint.load(folder)
        start = 0 if found is None else found.step
        log = JsonlLog(folder / "metrics.jsonl", start or None) if self.runtime.rank == 0 else None
        with self.console.progress(algorithm.stage, algorithm.steps, start=start) as progress:
            hooks = loop.Hooks(
                log=log.log if log else lambda row: None, advance=lambda values: progress.advance(1, **values)
            )
            loop.train(algorithm, settings, self.runtime, folder, hooks)
        if log:
            log.finish({})
        self.runtime.barrier()

    # --- sft -------------------------------------------------------------------------------------------------------

    def make_sft(self, folder: Path, policy: Policy, rows: list[np.ndarray]) -> None:
        """Train the reference policy; its loss is measured on rows that are kept back."""
        kept = min(HELD_OUT_ROWS, len(rows) // 10)
        algorithm = SFT(policy, rows[kept:], self.run.sft)
        before = time.perf_counter()
        self.train(algorithm, self.settings(self.run.sft.seed, self.run.sft.optim), folder)
        seconds = time.perf_counter() - before
        if self.runtime.rank:
            return
        policies.freeze(policy.lm)
        report: dict[str, Any] = {
            "steps": algorithm.steps,
            "parameters": sum(p.numel() for p in policy.lm.parameters()),
        }
        if kept:
            report["held_out_loss"] = held_out_loss(policy, rows[:kept], self.run.sft.batch_size)
        tokens = float(np.mean([len(row) for row in rows])) * self.run.sft.batch_size * algorithm.steps
        report["tokens"], report["tokens_per_second"] = int(tokens), tokens / seconds
        record.write_json(folder / "report.json", report)
        policies.save(policy, folder / "model", record.card(self.run, None), self.run.generation.temperature)
        checkpoint.remove(folder)

    # --- two_label -------------------------------------------------------------------------------------------------

    def make_two_label(self, folder: Path, policy: Policy, data: Path) -> None:
        """Fine-tune the two-label reward and hold it to account beside an n-gram classifier."""
        config, run = self.run.reward, self.run
        assert isinstance(config, TwoLabelReward)
        encode = self.encoder(policy.tokenizer)
        labelled, held_out = (pd.read_parquet(data / f"{name}.parquet") for name in ("labelled", "held_out"))
        start = folder / "start"
        if self.runtime.rank == 0:
            policies.save(policy, start, "", 1.0)
        self.runtime.barrier()
        pad_id = policy.tokenizer.pad_token_id
        pad_id = policy.eos_id if pad_id is None else int(pad_id)
        head = make_head(start, str(run.model.attention), config, pad_id)
        labels = labelled["label"].astype(int).tolist()
        sizes = (run.data.prompts, run.generation.max_new_tokens)
        algorithm = TwoLabel(head, encode(list(labelled["text"])), labels, config, *sizes)
        self.train(algorithm, self.settings(config.seed, config.optim), folder)
        if self.runtime.rank:
            return
        head.model.save_pretrained(folder / "model")
        policy.tokenizer.save_pretrained(folder / "model")
        # 1. the account: openings of unseen reviews, as long as what will be scored
        texts = decode(
            policy.tokenizer,
            [
                crop(tokens, Crop.opening, *sizes, config.seed, "held_out", index)
                for index, tokens in enumerate(encode(list(held_out["text"])))
            ],
        )
        truth = held_out["label"].to_numpy(dtype=int)
        scores = ClassifierReward(folder / "model", None, config.score_batch_size, self.runtime.device).score(texts)
        # 2. the peer: the same account after the same crops
        passes = range(max(1, int(np.ceil(config.epochs))))
        seen = [algorithm.crop_of(index, epoch) for epoch in passes for index in range(len(labels))]
        ngram = ngram_accuracy(decode(policy.tokenizer, seen), labels * len(passes), texts, truth.tolist())
        report = {
            "accuracy": float(np.mean((scores.logit > 0) == (truth == 1))),
            "ngram_accuracy": ngram,
            "held_out": len(truth),
            "mean_p_positive": float(scores.reward.mean()),
            "steps": algorithm.steps,
        }
        record.write_json(folder / "report.json", report)
        shutil.rmtree(start)
        checkpoint.remove(folder)

    # --- groups ----------------------------------------------------------------------------------------------------

    def make_groups(self, folder: Path, policy: Policy, reward: Reward, wanted: list[list[int]]) -> None:
        """K completions a prompt: sampled, scored on both scales, and with the reference's log-prob.

        Batches of one prompt length are a function of all prompts; processes share them out whole.
        """
        run, runtime = self.run, self.runtime
        assert isinstance(run, PreferenceRun)
        policies.freeze(policy.lm)
        k, new = run.groups.k, run.generation.max_new_tokens
        owners = [(prompt, number) for prompt in range(len(wanted)) for number in range(k)]
        batches = batches_by_length([len(wanted[prompt]) for prompt, _ in owners], run.groups.batch_size)
        found: list[dict[str, Any]] = []
        with self.console.progress("groups", len(owners), "completion") as progress:
            for number, batch in enumerate(batches):
                if number % runtime.world != runtime.rank:
                    continue
                keys = [owners[i] for i in batch]
                random = {p: uniforms(run.groups.seed, "groups", [p], k, new)[0] for p in {p for p, _ in keys}}
                heads = [wanted[prompt] for prompt, _ in keys]
                with runtime.autocast():
                    drawn = np.stack([random[prompt][which] for prompt, which in keys])
                    samples = sample(policy.lm, heads, drawn, policy.eos_id, run.generation.temperature)
                found += self._scored(policy, reward, keys, heads, samples.ids, samples.finished)
                progress.advance(len(keys) * runtime.world)
        frame = pd.DataFrame(runtime.gather(found), columns=groups.COLUMNS)
        frame = frame.sort_values(["prompt_id", "sample_id"], ignore_index=True)
        if runtime.rank:
            return
        self._write_groups(folder, frame)
        exported = groups.to_trl(frame)
        exported.to_parquet(folder / "preferences.parquet", index=False)
        report = {
            "prompts": len(wanted),
            "completions": len(frame),
            "pairs": len(exported),
            "reward_mean": float(frame["reward"].mean()),
            "reward_std": float(frame["reward"].std()),
            "finished": float(frame["finished"].mean()),
            "length": float(frame["completion_ids"].map(len).mean()),
        }
        record.write_json(folder / "report.json", report)

    def _scored(
        self,
        policy: Policy,
        reward: Reward,
        keys: list[tuple[int, int]],
        heads: list[list[int]],
        tails: list[list[int]],
        finished: list[bool],
    ) -> list[dict[str, Any]]:
        run = self.run
        assert isinstance(run, PreferenceRun)
        starts = decode(policy.tokenizer, heads)
        wholes = decode(policy.tokenizer, [head + tail for head, tail in zip(heads, tails, strict=True)])
        scores = reward.score(wholes)
        bad = np.flatnonzero(~(np.isfinite(scores.reward) & np.isfinite(scores.logit)))
        if len(bad):
            raise RunError(f"groups: the true reward of {wholes[bad[0]][:60]!r} is not finite; mend the reward")
        if run.groups.eos == Eos.appended:
            tails = [tail if ended else [*tail, policy.eos_id] for tail, ended in zip(tails, finished, strict=True)]
        with self.runtime.autocast():
            logprobs = sequence_logprobs(policy.lm, Rows.of(heads, tails), run.generation.temperature).tolist()
        return [
            {
                "prompt_id": prompt,
                "sample_id": which,
                "prompt_ids": heads[at],
                "completion_ids": tails[at],
                "prompt": starts[at],
                "completion": completion_text(starts[at], wholes[at]),
                "finished": finished[at],
                "reward": float(scores.reward[at]),
                "reward_logit": float(scores.logit[at]),
                "ref_logprob": logprobs[at],
            }
            for at, (prompt, which) in enumerate(keys)
        ]

    def make_preferences(self, folder: Path, policy: Policy, file: Path) -> None:
        """A preference parquet that exists, as groups with the reference's log-probs."""
        run, data = self.run, self.run.data
        policies.freeze(policy.lm)
        if self.runtime.rank:
            return
        context = policy.context
        table, pairs = groups.from_preferences(
            file, self.encoder(policy.tokenizer), policy.eos_id, append_eos=data.preferences_eos, context=context
        )
        logprobs = np.zeros(len(table))
        lengths = table["prompt_ids"].map(len) + table["completion_ids"].map(len)
        order = np.argsort(lengths.to_numpy(), kind="stable")
        assert isinstance(run, PreferenceRun)
        with self.console.progress("groups", len(table), "completion") as progress, self.runtime.autocast():
            for at in range(0, len(order), run.groups.batch_size):
                part = table.iloc[order[at : at + run.groups.batch_size]]
                rows = Rows.of(list(part["prompt_ids"]), list(part["completion_ids"]))
                logprobs[part.index] = sequence_logprobs(policy.lm, rows, run.generation.temperature).cpu().numpy()
                progress.advance(len(part))
        table["ref_logprob"] = logprobs
        self._write_groups(folder, table)
        np.savez(folder / "pairs.npz", rows=pairs.rows, prompts=pairs.prompts)
        report = {"prompts": int(table["prompt_id"].nunique()), "completions": len(table), "pairs": len(pairs.rows)}
        record.write_json(folder / "report.json", report | {"dropped": pairs.dropped})

    def _write_groups(self, folder: Path, frame: pd.DataFrame) -> None:
        if not torch.isfinite(torch.tensor(frame["ref_logprob"].to_numpy())).all():
            raise RunError("groups: a reference log-prob is not finite; set trainer.precision=float32")
        frame.to_parquet(folder / "groups.parquet", index=False)

    # --- what to say of an artifact --------------------------------------------------------------------------------

    def remark(self, name: str, folder: Path) -> str:
        """The one or two numbers of a stage that a person wants to see."""
        path = folder / "report.json"
        report = json.loads(path.read_text()) if path.exists() else {}
        if name == "data":
            removed = sum(sum(v.values()) for v in report.get("duplicates_removed", {}).values())
            empty = sum(report.get("empty_texts_skipped", {}).values())
            share = report["test_prompts_also_training_prompts"]
            return (
                f"{removed} duplicate and {empty} empty reviews left out, {share:.0%} of test prompts also in training"
            )
        if name == "sft" and "held_out_loss" in report:
            return (
                f"held-out loss {report['held_out_loss']:.3f} nats a token, {report['tokens_per_second']:,.0f} tokens/s"
            )
        if name == "labelled":
            return f"{report['labelled']} reviews with labels, {report['held_out']} held out"
        if name == "two_label":
            return (
                f"held-out accuracy {report['accuracy']:.1%}, n-gram logistic regression on the same crops "
                f"{report['ngram_accuracy']:.1%}"
            )
        if name == "groups" and "reward_mean" in report:
            return (
                f"{report['completions']} completions, reward {report['reward_mean']:.3f} ± {report['reward_std']:.3f}"
            )
        if name == "groups":
            return f"{report['pairs']} pairs over {report['completions']} completions"
        return ""
