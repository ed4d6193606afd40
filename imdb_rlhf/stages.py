"""How SFT, trained rewards, groups and the reservoir are made. Which and when is `pipeline.py`'s business."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from imdb_rlhf.algos.ngram import ngram_accuracy
from imdb_rlhf.algos.reward_model import RewardModel
from imdb_rlhf.algos.sft import SFT, held_out_loss
from imdb_rlhf.algos.two_label import TwoLabel, crop
from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.config.algos import BestOfNRun, GroupsRun, LearnedRun, PPORun, PreferenceRun
from imdb_rlhf.config.model import PretrainedModel, ScratchModel
from imdb_rlhf.config.optim import OptimConfig
from imdb_rlhf.config.reward import Crop, TwoLabelReward
from imdb_rlhf.config.run import Run
from imdb_rlhf.config.stages import Eos, GroupsConfig, ReservoirConfig
from imdb_rlhf.data import groups, hub, preferences
from imdb_rlhf.data.prompts import Encode
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.evaluation import agreement
from imdb_rlhf.evaluation.evaluate import completion_text
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.card import card
from imdb_rlhf.models.heads import make_reward_head, score_rows
from imdb_rlhf.models.label_head import make_head
from imdb_rlhf.models.logprobs import Rows, sequence_logprobs
from imdb_rlhf.models.policy import Policy, decode
from imdb_rlhf.models.sampling import Samples, batches_by_length, limits, sample, uniforms
from imdb_rlhf.rewards import Reward
from imdb_rlhf.rewards.classifier import ClassifierReward
from imdb_rlhf.tracking.console import Console, Progress
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
            RunError: no causal LM, no tokenizer, or one of another vocabulary.
            ConfigError: naming both lengths.
        """
        try:
            config = AutoConfig.from_pretrained(folder)
            rows = config.vocab_size
        except Exception as error:
            raise RunError(f"{key}={folder}: its config.json cannot be used: {str(error).splitlines()[0]}") from error
        if config.is_encoder_decoder:
            raise RunError(f"{key}={folder} is an encoder-decoder model ({config.model_type}); give a causal LM")
        policies.check_vocabulary(rows, policies.load_tokenizer(folder, key), folder, key)
        context = policies.context_length(config)
        prompt, new = self.run.data.prompts.max_tokens, self.run.generation.max_new_tokens
        run = self.run
        appended = isinstance(run, GroupsRun) and run.uses_groups and run.groups.eos == Eos.appended
        if prompt + new + appended > context:
            raise ConfigError(
                f"data.prompts.max_tokens={prompt} + generation.max_new_tokens={new} is longer than the {context} "
                f"tokens that {key}={folder} reads; shorten them"
            )
        if self.run.sft.path is None and self.run.sft.max_tokens > context and key != "own_model.path":
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

    def policy_settings(self, period: int) -> loop.Settings:
        """The loop's settings for the policy.

        Args:
            period: optimizer steps of a batch of episodes, 1 where there are none; PPO has a row of metrics a batch,
                and counts `evaluation.every` in batches.
        """
        run = self.run
        assert isinstance(run, PreferenceRun | PPORun)
        optim = run.ppo.optim if isinstance(run, PPORun) else run.policy.optim
        settings = self.settings(run.seed, optim, run.evaluation.every * period)
        return replace(settings, log_every=period) if isinstance(run, PPORun) else settings

    def train(
        self,
        algorithm: loop.Algorithm,
        settings: loop.Settings,
        folder: Path,
        evaluate: Callable[[int], dict[str, float]] | None = None,
    ) -> None:
        """Train an artifact's model with progress and `metrics.jsonl`, going on from a checkpoint if there is one."""
        found = checkpoint.load(folder)
        start = 0 if found is None else found.step
        log = JsonlLog(folder / "metrics.jsonl", start or None) if self.runtime.rank == 0 else None
        with self.console.progress(algorithm.stage, algorithm.steps, start=start) as progress:
            hooks = loop.Hooks(
                log=log.log if log else lambda row: None,
                advance=lambda values: progress.advance(1, **values),
                evaluate=evaluate,
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
        write_json(folder / "report.json", report)
        policies.save(policy, folder / "model", card(self.run, None), self.run.generation.temperature)
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
        write_json(folder / "report.json", report)
        shutil.rmtree(start)
        checkpoint.remove(folder)

    # --- reward_model ----------------------------------------------------------------------------------------------

    def make_reward_model(self, folder: Path, policy: Policy, groups_folder: Path, before: pd.DataFrame) -> None:
        """Train the learned reward, normalise its scores and hold it to account.

        Args:
            folder: of the artifact; `model/` and `normalisation.json` are what `rewards.learned` reads.
            policy: what it starts from.
            groups_folder: what it learns from.
            before: samples of the reference for evaluation prompts: columns `split`, `prompt_id`, `sample_id`,
                `prompt_ids`, `completion_ids`, `reward`, `reward_logit`.

        Raises:
            RunError: nothing to learn from, or scores that do not vary.
        """
        run = self.run
        assert isinstance(run, LearnedRun)
        config, size = run.reward_model, run.groups.batch_size
        start, best = folder / "start", folder / "best"
        if self.runtime.rank == 0:
            policies.save(policy, start, "", 1.0)
        self.runtime.barrier()
        pad_id = policy.tokenizer.pad_token_id
        pad_id = policy.eos_id if pad_id is None else int(pad_id)
        head = make_reward_head(start, str(run.model.attention), config.seed, pad_id).to(self.runtime.device)
        algorithm = RewardModel.from_artifacts(head, groups_folder, policy.eos_id, run)
        # 1. a standard deviation of 1 to begin with; of a mean the loss knows nothing
        _, std = self._spread(algorithm, before)
        head.scale(1 / std)
        # 2. of the evaluations the last is the end
        every = -(-algorithm.steps // config.evaluations)
        settings = self.settings(config.seed, config.optim, every)
        self.train(algorithm, settings, folder, self._keep_best(algorithm, folder, best, every))
        if self.runtime.rank:
            return
        kept = checkpoint.load(best)
        assert kept is not None
        head.load_state_dict(kept.weights)
        # 3. mean and standard deviation again, kept beside the model: its own scale is the Bradley-Terry model's
        mean, std = self._spread(algorithm, before)
        # 4. the account: samples that had no part in training nor in the choice of the checkpoint
        test = before[before["split"] == "test"].reset_index(drop=True)
        raw = score_rows(algorithm.plain, list(test["prompt_ids"]), list(test["completion_ids"]), size)
        test = test.assign(score=(raw - mean) / std)
        report = {
            "objective": str(config.objective),
            "pairs": len(algorithm.training.rows),
            "validation_pairs": len(algorithm.validation.rows),
            "dropped": algorithm.training.dropped,
            "steps": algorithm.steps,
            "kept_step": kept.step,
            "validation_accuracy": kept.sums["eval/accuracy"],
        }
        write_json(folder / "report.json", report | agreement.account(test, raw, run.evaluation))
        write_json(folder / "normalisation.json", {"mean": mean, "std": std})
        columns = ["prompt_id", "sample_id", "reward", "reward_logit", "score"]
        test[columns].to_parquet(folder / "scores.parquet", index=False)
        head.model.save_pretrained(folder / "model")
        policy.tokenizer.save_pretrained(folder / "model")
        shutil.rmtree(start)
        shutil.rmtree(best)
        checkpoint.remove(folder)

    def _keep_best(
        self, algorithm: RewardModel, folder: Path, best: Path, every: int
    ) -> Callable[[int], dict[str, float]]:
        """An evaluation that keeps the weights of the highest validation accuracy, the earliest of equals, in `best`.

        What is best so far belongs to the checkpoint that is gone on from: without the one the other is of no use.
        """
        if self.runtime.rank == 0:
            found = checkpoint.load(folder)
            if found is None:
                shutil.rmtree(best, ignore_errors=True)
            elif found.step >= every and checkpoint.load(best) is None:
                checkpoint.remove(folder)
        self.runtime.barrier()
        before = checkpoint.load(best)
        highest = -np.inf if before is None else before.sums["eval/accuracy"]

        def evaluate(step: int) -> dict[str, float]:
            nonlocal highest
            assert isinstance(self.run, LearnedRun)
            with self.runtime.autocast():
                values = algorithm.validate(self.run.groups.batch_size)
            if values["eval/accuracy"] > highest:
                highest = values["eval/accuracy"]
                if self.runtime.rank == 0:
                    weights = algorithm.plain.state_dict()
                    checkpoint.save(best, checkpoint.Checkpoint(step, weights, {}, values))
            return values

        return evaluate

    def _spread(self, algorithm: RewardModel, before: pd.DataFrame) -> tuple[float, float]:
        """Mean and standard deviation of the scores of reference samples that are not trained on, in float32.

        They are the completions of the validation prefixes; where the preferences were brought along, whose texts need
        not be the reference's, its samples for the validation prompts.
        """
        assert isinstance(self.run, LearnedRun)
        size = self.run.groups.batch_size
        if self.run.data.preferences is None:
            scores = algorithm.score(np.flatnonzero(algorithm.held_out), size)
        else:
            rows = before[before["split"] == "validation"]
            scores = score_rows(algorithm.plain, list(rows["prompt_ids"]), list(rows["completion_ids"]), size)
        # equal numbers may have a rounded mean that is none of them
        mean, std = float(scores.mean()), float(scores.std()) if np.ptp(scores) else 0.0
        if not (np.isfinite(mean) and np.isfinite(std) and std > 0):
            raise RunError(
                f"reward_model: its scores have standard deviation {std} on samples of the reference; "
                "lower reward_model.optim.lr, or set trainer.precision=float32"
            )
        return mean, std

    # --- groups ----------------------------------------------------------------------------------------------------

    def make_groups(self, folder: Path, policy: Policy, reward: Reward, wanted: list[list[int]]) -> None:
        """K completions a training prompt: sampled, scored on both scales, and with the reference's log-prob."""
        run = self.run
        assert isinstance(run, GroupsRun)
        with self.console.progress("groups", len(wanted) * run.groups.k, "completion") as progress:
            frame = self._reference_samples(policy, reward, wanted, run.groups, run.groups.k, "groups", progress)
        if self.runtime.rank:
            return
        self._write_groups(folder, frame)
        exported = preferences.to_trl(frame)
        exported.to_parquet(folder / "preferences.parquet", index=False)
        report = _samples_report(frame) | {"pairs": len(exported)}
        write_json(folder / "report.json", report)

    def make_reservoir(
        self, folder: Path, policy: Policy, reward: Reward, wanted: Mapping[str, list[list[int]]]
    ) -> None:
        """M completions of each evaluation prompt, in float32 as every evaluation is."""
        run = self.run
        assert isinstance(run, BestOfNRun | PPORun)
        config, frames = run.reservoir, []
        total = sum(len(rows) for rows in wanted.values()) * config.samples
        with self.console.progress("reservoir", total, "completion") as progress:
            for split, rows in wanted.items():
                stream = f"reservoir/{split}"
                frame = self._reference_samples(policy, reward, rows, config, config.samples, stream, progress)
                frames.append(frame.assign(split=split))
        if self.runtime.rank:
            return
        frame = pd.concat(frames, ignore_index=True)
        frame.to_parquet(folder / "reservoir.parquet", index=False)
        write_json(folder / "report.json", _samples_report(frame))

    def _reference_samples(
        self,
        policy: Policy,
        reward: Reward,
        wanted: list[list[int]],
        config: GroupsConfig | ReservoirConfig,
        count: int,
        stream: str,
        progress: Progress,
    ) -> pd.DataFrame:
        """`count` completions a prompt, in the order of prompts and samples.

        Batches of one prompt length are a function of all prompts; processes share them out whole. Groups are sampled
        in the training's precision, as the policy will be; the reservoir in float32.
        """
        run, runtime = self.run, self.runtime
        policies.freeze(policy.lm)
        owners = [(prompt, number) for prompt in range(len(wanted)) for number in range(count)]
        batches = batches_by_length([len(wanted[prompt]) for prompt, _ in owners], config.batch_size)
        appended = isinstance(config, GroupsConfig) and config.eos == Eos.appended
        found: list[dict[str, Any]] = []
        for number, batch in enumerate(batches):
            if number % runtime.world != runtime.rank:
                continue
            keys = [owners[i] for i in batch]
            new = run.generation.max_new_tokens
            random = {p: uniforms(config.seed, stream, [p], count, new)[0] for p in {p for p, _ in keys}}
            limit = {p: limits(config.seed, stream, [p], count, run.generation)[0] for p in random}
            ends = np.array([limit[prompt][which] for prompt, which in keys])
            heads = [wanted[prompt] for prompt, _ in keys]
            precision = runtime.autocast if isinstance(config, GroupsConfig) else nullcontext
            with precision():
                drawn = np.stack([random[prompt][which] for prompt, which in keys])
                samples = sample(policy.lm, heads, drawn, policy.eos_id, run.generation.temperature, ends)
            tails = samples.ids
            if appended:
                both = zip(tails, samples.finished, strict=True)
                tails = [tail if ended else [*tail, policy.eos_id] for tail, ended in both]
            with precision():
                logprobs = sequence_logprobs(policy.lm, Rows.of(heads, tails), run.generation.temperature).tolist()
            found += self._scored(policy, reward, keys, heads, samples, tails, logprobs)
            progress.advance(len(keys) * runtime.world)
        frame = pd.DataFrame(runtime.gather(found), columns=groups.COLUMNS)
        return frame.sort_values(["prompt_id", "sample_id"], ignore_index=True)

    def _scored(
        self,
        policy: Policy,
        reward: Reward,
        keys: list[tuple[int, int]],
        heads: list[list[int]],
        samples: Samples,
        tails: list[list[int]],
        logprobs: list[float],
    ) -> list[dict[str, Any]]:
        """Rows of a group table; texts are of what was sampled, `tails` of what is trained on."""
        starts = decode(policy.tokenizer, heads)
        wholes = decode(policy.tokenizer, [head + tail for head, tail in zip(heads, samples.ids, strict=True)])
        scores = reward.score(wholes)
        bad = np.flatnonzero(~(np.isfinite(scores.reward) & np.isfinite(scores.logit)))
        if len(bad):
            raise RunError(f"the true reward of {wholes[bad[0]][:60]!r} is not finite; mend the reward")
        return [
            {
                "prompt_id": prompt,
                "sample_id": which,
                "prompt_ids": heads[at],
                "completion_ids": tails[at],
                "prompt": starts[at],
                "completion": completion_text(starts[at], wholes[at]),
                "finished": samples.finished[at],
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
        table, pairs = preferences.from_preferences(
            file, self.encoder(policy.tokenizer), policy.eos_id, append_eos=data.preferences_eos, context=context
        )
        logprobs = np.zeros(len(table))
        lengths = table["prompt_ids"].map(len) + table["completion_ids"].map(len)
        order = np.argsort(lengths.to_numpy(), kind="stable")
        assert isinstance(run, GroupsRun)
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
        write_json(folder / "report.json", report | {"dropped": pairs.dropped})

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
        if name == "reward_model":
            accuracy, pearson = (
                "undefined" if report[key] is None else f"{report[key]:{form}}"
                for key, form in (("accuracy", ".1%"), ("pearson", ".2f"))
            )
            return f"test pair accuracy {accuracy}, correlation with the true log-odds {pearson}"
        if name in ("groups", "reservoir") and "reward_mean" in report:
            return (
                f"{report['completions']} completions, reward {report['reward_mean']:.3f} ± {report['reward_std']:.3f}"
            )
        if name == "own_model" and report["tokens_left_out"]:
            return f"{report['tokens_left_out']} entries that the reference does not have are never sampled"
        if name == "groups":
            return f"{report['pairs']} pairs over {report['completions']} completions"
        return ""


def _samples_report(frame: pd.DataFrame) -> dict[str, Any]:
    return {
        "completions": len(frame),
        "reward_mean": float(frame["reward"].mean()),
        "reward_std": float(frame["reward"].std()),
        "finished": float(frame["finished"].mean()),
        "length": float(frame["completion_ids"].map(len).mean()),
    }
