"""What is measured of one model."""

from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
import pandas as pd

from imdb_rlhf.config.stages import EvaluationConfig
from imdb_rlhf.evaluation.reservoir import table
from imdb_rlhf.evaluation.results import results
from imdb_rlhf.runs.summary import samples


@dataclass(frozen=True)
class Measurement:
    """Reward and KL of a model on the test prompts; the definitions are those of `summary.json` (docs/metrics.md).

    Intervals are [low, high], percentile bootstraps over prompts. KL is in nats per sequence.

    Attributes:
        reward, reward_ci: mean over prompts of the mean over samples.
        reward_logit: the same on the ranking scale; equal to `reward` for a function.
        kl, kl_ci: the exact KL to the reference, summed over the whole vocabulary at every visited step.
        kl_k1, kl_k1_ci: log pi - log ref of the samples: a noisier estimate of the same number.
        kl_per_token: nats per completion token.
        win_rate, win_rate_ci: how often a sample has the higher reward than one of the reference; ties count half.
        length, eos_rate, distinct_2: tokens; share that ended in EOS; distinct word bigrams.
        prompts, samples_per_prompt: how many.
        reference: `reward`, `reward_ci`, `reward_logit`, `reward_std`, `length`, ... of the reference.
        confidence: of the intervals.
        rows: a row per sample, with the columns of `evaluations.parquet`, texts and tokens.
        samples: a row per sample beside the reference's, with the columns of `samples.parquet`.
    """

    reward: float
    reward_ci: list[float]
    reward_logit: float
    kl: float
    kl_ci: list[float]
    kl_k1: float
    kl_k1_ci: list[float]
    kl_per_token: float
    win_rate: float
    win_rate_ci: list[float]
    length: float
    eos_rate: float
    distinct_2: float
    prompts: int
    samples_per_prompt: int
    reference: dict[str, Any]
    confidence: float
    rows: pd.DataFrame = field(repr=False, compare=False)
    samples: pd.DataFrame = field(repr=False, compare=False)

    @classmethod
    def of(cls, frame: pd.DataFrame, reference: pd.DataFrame, config: EvaluationConfig) -> Self:
        """The measurement of evaluation rows, beside the reference's rows of the same prompts."""
        values = results(frame, reference, config)
        return cls(**values, confidence=config.confidence, rows=frame, samples=samples(frame, reference))

    def array(self, column: str = "reward") -> np.ndarray:
        """(prompts, samples) a column of `rows`; of the reference itself it is a reservoir."""
        return table(self.rows, "test", column)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, without the tables."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("rows", "samples")}

    def __str__(self) -> str:
        lines = [
            ("reward", self.reward, self.reward_ci, f"reference {self.reference['reward']:.3f}"),
            ("KL (nats)", self.kl, self.kl_ci, f"k1 {self.kl_k1:.3f}"),
            (
                "win rate",
                self.win_rate,
                self.win_rate_ci,
                f"{self.prompts} prompts x {self.samples_per_prompt} samples",
            ),
        ]
        return "\n".join(
            f"{name:<10} {value:.3f} [{low:.3f}, {high:.3f}]   {more}" for name, value, (low, high), more in lines
        )
