"""The true reward, and stage `two_label`, which trains it where it is a two-label classifier of one's own."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from imdb_rlhf.algos.ngram import ngram_accuracy
from imdb_rlhf.algos.two_label import TwoLabel, crop
from imdb_rlhf.artifacts.files import hash_of, write_json
from imdb_rlhf.config.data import Bos
from imdb_rlhf.config.reward import Crop, TwoLabelReward
from imdb_rlhf.errors import RunError
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.label_head import make_head
from imdb_rlhf.models.tokens import decode, encoder
from imdb_rlhf.rewards import CheckedReward, Reward, kind_of
from imdb_rlhf.rewards.classifier import ClassifierReward
from imdb_rlhf.stages.reference import identity_of, open_start
from imdb_rlhf.stages.reviews import Labelled
from imdb_rlhf.stages.sources import Base, ClassifierStage
from imdb_rlhf.stages.stage import Disk, Flow
from imdb_rlhf.stages.training import settings, train, training_disk
from imdb_rlhf.training import checkpoint

# Texts of a reused artifact that are scored again.
COMPARED = 16
# What a reward is tried with.
TRIAL = (
    "The film is",
    "The film is a delight from its first minute to its last, and so is the score.",
    "A dull, slow and bad one: I left before its end.",
    "It was great!",
)
# How far two scores of a text may be apart, as parts of the spread of all scores and of the score itself: float32
# rounds otherwise in another batch.
TOLERANCE, ROUNDING = 1e-4, 1e-6


class TrainedReward(ClassifierStage):
    """A two-label head, fine-tuned on labelled reviews."""

    name = "two_label"
    resumable = True

    def __init__(self, flow: Flow, config: TwoLabelReward) -> None:
        super().__init__(flow)
        self.config = config

    @classmethod
    def of(cls, flow: Flow) -> Self | None:
        """Only where the true reward is trained."""
        return cls(flow, flow.run.reward) if isinstance(flow.run.reward, TwoLabelReward) else None

    def inputs(self) -> dict[str, Any]:
        """The reward's configuration, the labelled reviews, the weights that it starts from and the machine."""
        return {
            "config": {key: value for key, value in asdict(self.config).items() if key != "score_batch_size"},
            "data": self.flow.key(Labelled),
            "base": identity_of(self.flow, self.config.init),
            "new_tokens": self.flow.run.generation.max_new_tokens,
            "machine": self.flow.training_facts,
        } | self.flow.get(Base).bos_identity

    def make(self, folder: Path) -> None:
        """Fine-tune the head, and measure it beside an n-gram classifier."""
        config, run = self.config, self.flow.run
        policy = open_start(self.flow, config.init)
        encode, bos_id = encoder(policy.tokenizer), self.flow.get(Base).bos_id
        labelled, held_out = self.flow.get(Labelled).reviews()
        start = folder / "start"
        if self.runtime.rank == 0:
            policies.save(policy, start, "", 1.0)
        self.runtime.barrier()
        head = make_head(start, str(run.model.attention), config, policy.pad_id)
        labels = labelled["label"].astype(int).tolist()
        sizes = (run.data.prompts, run.generation.max_new_tokens)
        algorithm = TwoLabel(head, encode(list(labelled["text"])), labels, config, *sizes, bos_id)
        train(self.flow, algorithm, settings(self.flow, config.seed, config.optim), folder)
        if self.runtime.rank:
            return
        head.model.save_pretrained(folder / "model")
        policy.tokenizer.save_pretrained(folder / "model")
        # 1. accuracy on openings of unseen reviews, as long as the texts that it will score
        crops = [
            crop(tokens, Crop.opening, *sizes, config.seed, "held_out", index)
            for index, tokens in enumerate(encode(list(held_out["text"])))
        ]
        texts, truth = decode(policy.tokenizer, crops), held_out["label"].to_numpy(dtype=int)
        bos, key = Bos.never if bos_id is None else Bos.always, "two_label"
        reward = ClassifierReward(folder / "model", None, config.score_batch_size, self.runtime.device, key, bos=bos)
        scores = reward.score(texts)
        # 2. the n-gram classifier: trained on the same crops, measured on the same texts
        passes = range(max(1, int(np.ceil(config.epochs))))
        training_crops = [algorithm.crop_of(index, epoch) for epoch in passes for index in range(len(labels))]
        training_texts = decode(policy.tokenizer, training_crops)
        report = {
            "accuracy": float(np.mean((scores.logit > 0) == (truth == 1))),
            "ngram_accuracy": ngram_accuracy(training_texts, labels * len(passes), texts, truth.tolist()),
            "held_out": len(truth),
            "bos": str(bos),
            "mean_p_positive": float(scores.reward.mean()),
            "steps": algorithm.steps,
        }
        write_json(folder / "report.json", report)
        shutil.rmtree(start)
        checkpoint.remove(folder)

    def summary_line(self, folder: Path) -> str:
        """Its accuracy beside the n-gram classifier's."""
        report = json.loads((folder / "report.json").read_text())
        return (
            f"held-out accuracy {report['accuracy']:.1%}, n-gram logistic regression on the same crops "
            f"{report['ngram_accuracy']:.1%}"
        )

    def size(self) -> Disk:
        """The classifier; the weights that it starts from and checkpoints on the way."""
        return training_disk(self.flow, self.config.optim, temporary=1)


class TrueReward:
    """The true reward of a run, whatever its kind."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.kind = flow, kind_of(flow.run.reward)
        if self.kind.trained and not flow.has(TrainedReward):
            raise RunError(
                f"reward={flow.run.reward.name} is to be trained, and no stage trains it: {__name__} has none"
            )

    @property
    def identity(self) -> Any:
        """What it contributes to the keys of artifacts.

        Raises:
            RunError: it cannot be hashed.
        """
        identity = self.kind.identity(self.flow.key(TrainedReward) if self.kind.trained else None)
        try:
            hash_of(identity)
        except (TypeError, ValueError) as error:
            raise RunError(f"{type(self.kind).__module__}.Kind.identity cannot be hashed: {error}") from error
        return identity

    def check(self) -> None:
        """Refuse a reward that cannot be found or read, before any work."""
        self.kind.check()

    def fetch(self) -> None:
        """Try a reward that no stage trains, so that one that cannot be used is refused before the first stage."""
        if not self.kind.trained:
            together = self.reward.score(TRIAL).logit
            if self.kind.compared:
                self._try_apart(together)

    def _try_apart(self, together: np.ndarray) -> None:
        """Refuse a reward whose scores depend on the texts that are scored in the same call, or on their order.

        Args:
            together: (texts,) scores of `TRIAL` in one call.
        """
        alone = np.concatenate([self.reward.score([text]).logit for text in TRIAL])
        backwards = self.reward.score(TRIAL[::-1]).logit[::-1]
        for other, how in ((alone, "alone"), (backwards, "in another order")):
            at = first_difference(other, together, float(np.std(together)))
            if at is not None:
                raise RunError(
                    f"reward={self.flow.run.reward.name} gives {together[at]:.9g} for the text {TRIAL[at][:60]!r} "
                    f"among {len(TRIAL)} texts, and {other[at]:.9g} {how}: it depends on chance or on the "
                    "other texts of a call; make each score a function of its own text (in float32, if a network "
                    "computes it)"
                )

    def compare(self, texts: Sequence[str], stored: Sequence[float], folder: Path) -> None:
        """Score stored texts again, where scores may depend on what their artifact's key cannot know.

        Args:
            texts: of a reused artifact; some of them are scored.
            stored: their log-odds there. Two scores may differ by rounding: a small part of the spread of these.
            folder: of the artifact.

        Raises:
            RunError: a score differs.
        """
        if not self.kind.compared or not len(texts):
            return
        chosen = np.unique(np.linspace(0, len(texts) - 1, COMPARED).round().astype(int))
        again = self.reward.score([texts[at] for at in chosen]).logit
        before = np.asarray(stored, dtype=np.float64)
        at = first_difference(again, before[chosen], float(np.std(before)))
        if at is not None:
            raise RunError(
                f"reward={self.flow.run.reward.name} gives {again[at]:.9g} where {folder} holds "
                f"{before[chosen[at]]:.9g}, for the text {texts[chosen[at]][:60]!r}: it depends on chance, on the "
                "other texts of a call, or on a file that its key does not know; name the file in reward.files"
            )

    @cached_property
    def reward(self) -> Reward:
        """The reward, ready to score; where a stage trains it, that stage must be built."""
        artifact = self.flow.get(TrainedReward).path if self.kind.trained else None
        return CheckedReward(self.kind.open(self.flow.runtime.device, artifact), self.kind)


def first_difference(scores: np.ndarray, others: np.ndarray, spread: float) -> int | None:
    """The first index at which two (n,) arrays of scores differ by more than rounding; None if there is none.

    Args:
        scores: of some texts.
        others: of the same texts, scored another time.
        spread: standard deviation of such scores: what is small beside it changes nothing.
    """
    near = np.abs(scores - others) <= TOLERANCE * spread + ROUNDING * np.abs(others)
    wrong = np.flatnonzero(~near)
    return int(wrong[0]) if len(wrong) else None
