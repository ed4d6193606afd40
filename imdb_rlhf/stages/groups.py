"""Stages `groups` and `rescored`.

Groups are K completions of the reference per training prompt, or the preferences of a file, with the reference's
log-probs. Where the policy is trained in another precision, those log-probs are computed in it again: two roundings of
one policy differ, and a loss must not take that for a change of the policy. All methods still share the groups.
"""

import json
import shutil
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.artifacts.tables import write_table
from imdb_rlhf.config.families import GroupsRun, PreferenceRun
from imdb_rlhf.data import groups, preference_groups
from imdb_rlhf.data.card import Exported, card
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.data.preferences import KEY, Examples, PreferenceData
from imdb_rlhf.errors import RunError
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.logprobs import Rows, sequence_logprobs
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.tokens import chat_of, encoder
from imdb_rlhf.stages.reference import Reference
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.samples import Sampler, compare_scores, report_of, summary_of
from imdb_rlhf.stages.sources import Base
from imdb_rlhf.stages.stage import Disk, Flow, Stage, unchanging
from imdb_rlhf.stages.true_reward import TrueReward
from imdb_rlhf.training.runtime import Runtime


class Groups(Stage):
    """Completions with true rewards and the reference's log-probs."""

    name = "groups"

    def __init__(self, flow: Flow, run: GroupsRun) -> None:
        super().__init__(flow)
        self.run = run
        self.brought: tuple[Examples, pd.DataFrame, Pairs, int] | None = None  # the preferences as groups, once read

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where something learns from groups."""
        run = flow.run
        return cls(flow, run) if isinstance(run, GroupsRun) and run.uses_groups else None

    @cached_property
    def preferences(self) -> PreferenceData | None:
        """The preferences of the run, where it brings some."""
        data = self.run.data
        if data.preferences is None:
            return None
        return PreferenceData(data.preferences, data.preferences_revision, data.preferences_split)

    @cached_property
    def preferences_hash(self) -> str | None:
        """The hash of their content, whatever they are stored in."""
        return None if self.preferences is None else self.preferences.content()

    def inputs(self) -> dict[str, Any]:
        """The prompts and the true reward, or the content of the preference file; the reference; the machine."""
        if self.preferences is None:
            source: Any = {
                "config": asdict(self.run.groups),
                "reward": self.flow.get(TrueReward).identity,
                "data": self.flow.key(Reviews),
            }
        else:
            # rounding depends on the batch
            source = {"file": self.preferences_hash, "eos": self.run.data.preferences_eos}
            source |= {"batch_size": self.run.groups.batch_size} | self.flow.get(Base).bos_identity
        return {
            "source": source,
            "reference": self.flow.get(Reference).identity,
            "generation": self.flow.generation,
            "machine": self.runtime.facts(),
        }

    def check(self) -> None:
        """Refuse preferences that cannot be read, row by row."""
        if self.preferences is not None and self.preferences.is_local:
            _ = self.preferences.files
            base = self.flow.get(Base)
            if base.source is not None and base.is_here:
                self._read(self.preferences, base.source.tokenizer())

    def fetch(self) -> None:
        """Download preferences from the Hub."""
        if self.preferences is not None:
            _ = self.preferences.files

    def check_after(self, built: Stage) -> None:
        """Refuse preferences of which no pair is left, as soon as the reference's tokenizer is known."""
        tokenizer = None if self.preferences is None else self.flow.get(Reviews).known_tokenizer()
        if tokenizer is not None and self.preferences is not None:
            self._read(self.preferences, tokenizer)

    def _read(
        self, data: PreferenceData, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Examples, pd.DataFrame, Pairs, int]:
        """The preferences as text, as groups and pairs, and how many prompts end inside a token; read once."""
        if self.brought is None:
            chat, base = chat_of(tokenizer), self.flow.get(Base)
            examples = data.examples(chat)
            groups_and_pairs = preference_groups.from_preferences(
                examples,
                chat.encode if chat is not None and examples.conversations else encoder(tokenizer),
                int(tokenizer.eos_token_id),
                base.bos_id,
                append_eos=self.run.data.preferences_eos,
                context=base.context,
                where=f"{KEY}={data.path}",
            )
            self.brought = examples, *groups_and_pairs
        return self.brought

    def make(self, folder: Path) -> None:
        """Sample and score the groups, or score the preferences that were brought."""
        if self.preferences is None:
            self._sample(folder)
        else:
            self._score_preferences(folder, self.preferences)

    def check_reused(self) -> None:
        """Refuse scores that the true reward no longer gives."""
        if self.preferences is None:
            compare_scores(self.flow, groups.read(self.path), self.path)

    def _sample(self, folder: Path) -> None:
        config, prompts = self.run.groups, self.flow.get(Reviews).training_prompts
        sampler = Sampler(
            self.flow, config.seed, config.k, config.batch_size, self.runtime.autocast, self.run.appends_eos
        )
        policy, reward = sampler.open()
        with self.console.progress("groups", len(prompts) * config.k, "completion") as progress:
            frame = sampler.table(policy, reward, prompts, "groups", progress)
        if self.runtime.rank:
            return
        compare_scores(self.flow, frame, folder)  # in other batches
        _write(folder, frame)
        exported = preference_groups.to_trl(frame)
        write_table(folder / "preferences.parquet", exported)
        (folder / "README.md").write_text(card([Exported(folder, folder.stem, self.run)]))
        write_json(folder / "report.json", report_of(frame) | {"pairs": len(exported)})

    def _score_preferences(self, folder: Path, data: PreferenceData) -> None:
        """The pairs that were brought as groups, with the reference's log-probs."""
        policy = self.flow.get(Reference).policy()
        examples, table, pairs, inside = self._read(data, policy.tokenizer)
        logprobs = _reference_logprobs(self, self.runtime, self.run, policy, table)
        if self.runtime.rank:
            return
        table["ref_logprob"] = logprobs
        _write(folder, table)
        np.savez(folder / "pairs.npz", rows=pairs.rows, prompts=pairs.prompts)
        report: dict[str, Any] = {
            "prompts": int(table["prompt_id"].nunique()),
            "completions": len(table),
            "pairs": len(pairs.rows),
        }
        report |= {"dropped": pairs.dropped, "inside": inside, "repeated": examples.repeated}
        write_json(folder / "report.json", report)

    def summary_line(self, folder: Path) -> str:
        """How many completions, and their rewards or pairs."""
        report = json.loads((folder / "report.json").read_text())
        if "reward_mean" in report:
            return summary_of(folder)
        line = f"{report['pairs']} pairs over {report['completions']} completions"
        if report["inside"]:
            line += f"; {report['inside']} prompts end inside a token, which counts to the completion"
        if report["repeated"]:
            line += f"; in {report['repeated']} rows both completions begin with the prompt, so it is there twice"
        return line

    def size(self) -> Disk:
        """About 1,000 bytes per completion."""
        return unchanging(1000 * self.run.data.prompts.train * self.run.groups.k)


class RescoredGroups(Stage):
    """The groups with the reference's log-probs in the precision in which the policy is trained."""

    name = "rescored"

    def __init__(self, flow: Flow, run: PreferenceRun) -> None:
        super().__init__(flow)
        self.run, self.trained = run, flow.runtime.at(run.precision)

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where that is another precision than the groups'."""
        run = flow.run
        if not isinstance(run, PreferenceRun) or not run.uses_groups:
            return None
        stage = cls(flow, run)
        return stage if stage.trained.precision != flow.runtime.precision else None

    def inputs(self) -> dict[str, Any]:
        """The groups and the precision; the batch is one of the groups' own inputs."""
        return {"groups": self.flow.key(Groups), "machine": self.trained.facts()}

    def make(self, folder: Path) -> None:
        """Score the completions again; everything else is as the groups have it."""
        source = self.flow.get(Groups).path
        table = groups.read(source)
        logprobs = _reference_logprobs(self, self.trained, self.run, self.flow.get(Reference).policy(), table)
        if self.runtime.rank:
            return
        difference = float(np.abs(logprobs - table["ref_logprob"]).mean())
        _write(folder, table.assign(ref_logprob=logprobs))
        if (source / "pairs.npz").exists():
            shutil.copy(source / "pairs.npz", folder)
        report = json.loads((source / "report.json").read_text()) | {"logprob_difference": difference}
        write_json(folder / "report.json", report)

    def summary_line(self, folder: Path) -> str:
        """How far the log-probs are from the groups'."""
        difference = json.loads((folder / "report.json").read_text())["logprob_difference"]
        return f"log-probs in {self.trained.precision}, {difference:.2g} nats per completion from the groups'"

    def size(self) -> Disk:
        """As much as the groups."""
        return self.flow.get(Groups).size()


def _reference_logprobs(
    stage: Stage, runtime: Runtime, run: GroupsRun, policy: Policy, table: pd.DataFrame
) -> np.ndarray:
    """(completions,) log-probs of a group table under the reference, nats, on every rank; batches are of like length.

    Args:
        stage: shows its progress.
        runtime: the precision, and the processes that share the batches out whole.
        run: size of a batch, and temperature.
        policy: the reference; it is frozen.
        table: with `prompt_ids` and `completion_ids`.
    """
    policies.freeze(policy.lm)
    found: list[tuple[int, float]] = []
    lengths = table["prompt_ids"].map(len) + table["completion_ids"].map(len)
    order, size = np.argsort(lengths.to_numpy(), kind="stable"), run.groups.batch_size
    with stage.console.progress(stage.name, len(table), "completion") as progress, runtime.autocast():
        for number, at in enumerate(range(0, len(order), size)):
            if number % runtime.world != runtime.rank:
                continue
            part = table.iloc[order[at : at + size]]
            rows = Rows.of([list(ids) for ids in part["prompt_ids"]], [list(ids) for ids in part["completion_ids"]])
            sums = sequence_logprobs(policy.lm, rows, run.generation.temperature)
            found += zip(order[at : at + size].tolist(), sums.tolist(), strict=True)
            progress.advance(len(part) * runtime.world)
    logprobs = np.zeros(len(table))
    for row, value in runtime.gather(found):
        logprobs[row] = value
    return logprobs


def _write(folder: Path, frame: pd.DataFrame) -> None:
    """Write a group table.

    Raises:
        RunError: a log-prob is not finite.
    """
    if not np.isfinite(frame["ref_logprob"].to_numpy()).all():
        raise RunError("groups: a reference log-prob is not finite; set trainer.precision=float32")
    write_table(folder / "groups.parquet", frame)
