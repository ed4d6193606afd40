"""Stage `sft`: the reference policy, trained on reviews; with `sft.path` one that exists takes its place."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from imdb_rlhf.algos.sft import SFT, held_out_loss
from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.config.reward import Init
from imdb_rlhf.errors import RunError
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.card import card
from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.sources import Base
from imdb_rlhf.stages.stage import Disk, Flow, Stage
from imdb_rlhf.stages.training import settings, train, training_disk
from imdb_rlhf.training import checkpoint

# A held-out loss beyond so many times that of guessing is no model's.
WRECKED = 2.0
HELD_OUT_ROWS = 512  # SFT rows that its loss is measured on and that it does not train on


class TrainedReference(Stage):
    """Supervised fine-tuning on reviews."""

    name = "sft"
    resumable = True

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where no reference exists."""
        return cls(flow) if flow.run.sft.path is None else None

    def inputs(self) -> dict[str, Any]:
        """SFT's configuration, the model that it starts from, the data and the machine."""
        return {
            "config": asdict(self.flow.run.sft) | {"path": None, "revision": None},
            "base": self.flow.get(Base).identity,
            "data": self.flow.key(Reviews),
            "machine": self.flow.training_facts,
        }

    def make(self, folder: Path) -> None:
        """Train the reference policy; its loss is measured on rows that it did not see."""
        run, policy, rows = self.flow.run, open_base(self.flow), self.flow.get(Reviews).sft_rows()
        held_out = min(HELD_OUT_ROWS, len(rows) // 10)
        algorithm = SFT(policy, rows[held_out:], run.sft)
        began = time.perf_counter()
        train(self.flow, algorithm, settings(self.flow, run.sft.seed, run.sft.optim), folder)
        seconds = time.perf_counter() - began
        if self.runtime.rank:
            return
        policies.freeze(policy.lm)
        report: dict[str, Any] = {
            "steps": algorithm.steps,
            "parameters": sum(p.numel() for p in policy.lm.parameters()),
        }
        if held_out:
            report["held_out_loss"] = loss = held_out_loss(policy, rows[:held_out], run.sft.batch_size)
            if not math.isfinite(loss):
                raise RunError(f"sft: the held-out loss is {loss}, so the model cannot be used; lower sft.optim.lr")
            uniform = math.log(output_layer(policy.lm).vocabulary)
            if loss > WRECKED * uniform:
                raise RunError(
                    f"sft: the held-out loss is {loss:,.4g} nats per token, and guessing has {uniform:.4g}: training "
                    "diverged; lower sft.optim.lr"
                )
        tokens = float(np.mean([len(row) for row in rows])) * run.sft.batch_size * algorithm.steps
        report["tokens"], report["tokens_per_second"] = int(tokens), tokens / seconds
        write_json(folder / "report.json", report)
        model_card = card(run, "SFT", None, self.flow.get(Reviews).bos)
        policies.save(policy, folder / "model", model_card, run.generation.temperature)
        checkpoint.remove(folder)

    def summary_line(self, folder: Path) -> str:
        """The held-out loss and the speed."""
        report = json.loads((folder / "report.json").read_text())
        if "held_out_loss" not in report:
            return ""
        loss, speed = report["held_out_loss"], report["tokens_per_second"]
        return f"held-out loss {loss:.3f} nats per token, {speed:,.0f} tokens/s"

    def size(self) -> Disk:
        """The model, and checkpoints on the way."""
        return training_disk(self.flow, self.flow.run.sft.optim)


# --- how base and reference are opened --------------------------------------------------------------------------------


def open_base(flow: Flow) -> Policy:
    """The model that SFT starts from, on the CPU."""
    return flow.get(Base).policy(flow.get(Reviews).tokenizer)


class Reference:
    """The reference policy: trained by stage `sft`, or the one that `sft.path` names."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    @property
    def identity(self) -> Any:
        """What it contributes to artifacts' keys: its own key, or the identity of the model that exists."""
        return self.flow.key(TrainedReference) if self.flow.has(TrainedReference) else self.flow.get(Base).identity

    def policy(self) -> Policy:
        """A fresh copy on this run's device."""
        source = self.flow.get(Base).source
        attention = str(self.flow.run.model.attention)
        if self.flow.has(TrainedReference) or source is None:
            policy = policies.load(self.flow.get(TrainedReference).path / "model", attention, "sft")
        else:
            policy = policies.load(source.folder, attention, source.key)
        policy.lm.to(self.flow.runtime.device)
        return policy


def identity_of(flow: Flow, init: Init) -> Any:
    """What keys hash of the weights that a reward starts from: the reference's, or the base model's."""
    return flow.get(Reference).identity if init == Init.sft else flow.get(Base).identity


def open_start(flow: Flow, init: Init) -> Policy:
    """The weights that a reward starts from: the reference's, or the base model's."""
    return flow.get(Reference).policy() if init == Init.sft else open_base(flow)
