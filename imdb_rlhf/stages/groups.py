"""Stage `groups`: K completions of the reference per training prompt, or the preferences of a file."""

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from imdb_rlhf.artifacts.files import hash_file, write_json
from imdb_rlhf.config.families import GroupsRun
from imdb_rlhf.data import preferences
from imdb_rlhf.errors import RunError
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.logprobs import Rows, sequence_logprobs
from imdb_rlhf.models.tokens import encoder
from imdb_rlhf.stages.reference import Reference
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.samples import Sampler, report_of, summary_of
from imdb_rlhf.stages.sources import Base
from imdb_rlhf.stages.stage import Disk, Flow, Stage, unchanging
from imdb_rlhf.stages.true_reward import TrueReward


class Groups(Stage):
    """Completions with true rewards and the reference's log-probs."""

    name = "groups"

    def __init__(self, flow: Flow, run: GroupsRun) -> None:
        super().__init__(flow)
        self.run = run

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where something learns from groups."""
        run = flow.run
        return cls(flow, run) if isinstance(run, GroupsRun) and run.uses_groups else None

    @property
    def preferences(self) -> Path | None:
        """The preference file of the run, where it brings one."""
        path = self.run.data.preferences
        return None if path is None else Path(path).expanduser()

    @cached_property
    def preferences_hash(self) -> str | None:
        """The hash of its content."""
        return None if self.preferences is None else hash_file(self.preferences)

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
        """Refuse a preference file that cannot be read."""
        if self.preferences is not None:
            preferences.check_preferences(self.preferences)

    def make(self, folder: Path) -> None:
        """Sample and score the groups, or score the preferences that were brought."""
        if self.preferences is None:
            self._sample(folder)
        else:
            self._score_preferences(folder, self.preferences)

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
        self._write(folder, frame)
        exported = preferences.to_trl(frame)
        exported.to_parquet(folder / "preferences.parquet", index=False)
        write_json(folder / "report.json", report_of(frame) | {"pairs": len(exported)})

    def _score_preferences(self, folder: Path, file: Path) -> None:
        """The pairs of a file as groups, with the reference's log-probs."""
        policy, batch_size = self.flow.get(Reference).policy(), self.run.groups.batch_size
        policies.freeze(policy.lm)
        if self.runtime.rank:
            return
        table, pairs = preferences.from_preferences(
            file,
            encoder(policy.tokenizer),
            policy.eos_id,
            self.flow.get(Base).bos_id,
            append_eos=self.run.data.preferences_eos,
            context=policy.context,
        )
        logprobs = np.zeros(len(table))
        lengths = table["prompt_ids"].map(len) + table["completion_ids"].map(len)
        order = np.argsort(lengths.to_numpy(), kind="stable")
        with self.console.progress("groups", len(table), "completion") as progress, self.runtime.autocast():
            for at in range(0, len(order), batch_size):
                part = table.iloc[order[at : at + batch_size]]
                rows = Rows.of(list(part["prompt_ids"]), list(part["completion_ids"]))
                sums = sequence_logprobs(policy.lm, rows, self.run.generation.temperature)
                logprobs[part.index] = sums.cpu().numpy()
                progress.advance(len(part))
        table["ref_logprob"] = logprobs
        self._write(folder, table)
        np.savez(folder / "pairs.npz", rows=pairs.rows, prompts=pairs.prompts)
        report = {"prompts": int(table["prompt_id"].nunique()), "completions": len(table), "pairs": len(pairs.rows)}
        write_json(folder / "report.json", report | {"dropped": pairs.dropped})

    def _write(self, folder: Path, frame: pd.DataFrame) -> None:
        if not torch.isfinite(torch.tensor(frame["ref_logprob"].to_numpy())).all():
            raise RunError("groups: a reference log-prob is not finite; set trainer.precision=float32")
        frame.to_parquet(folder / "groups.parquet", index=False)

    def summary_line(self, folder: Path) -> str:
        """How many completions, and their rewards or pairs."""
        report = json.loads((folder / "report.json").read_text())
        if "reward_mean" in report:
            return summary_of(folder)
        return f"{report['pairs']} pairs over {report['completions']} completions"

    def size(self) -> Disk:
        """About 1,000 bytes per completion."""
        return unchanging(1000 * self.run.data.prompts.train * self.run.groups.k)
