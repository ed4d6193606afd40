"""What moves a number: its variance split into prompts, the policy's training seed, and the reference.

The runs of one setting are a balanced design: each of R references has S policies of its own (training seeds, nested in
the reference), and all of them are evaluated on the same P prompts (crossed with both). With random effects

    y[r, s, p] = mean + reference[r] + seed[r, s] + prompt[p] + both[r, p] + rest[r, s, p]

the components are those of the analysis of variance (Searle, Casella and McCulloch 1992, chapter 4): mean squares set
equal to their expectations. Each part is the standard deviation that it alone gives to the number of one run.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from imdb_rlhf.seeds import generator

DRAWS = 20_000  # of the mean squares behind an interval


@dataclass(frozen=True)
class Part:
    """One part of the spread of a run's number.

    Attributes:
        sd: the standard deviation that it gives to the mean over prompts of one run; 0 where the estimate of its
            variance is not above 0.
        ci: its interval.
    """

    sd: float
    ci: tuple[float, float]


@dataclass(frozen=True)
class Components:
    """The parts of the spread of one run's number.

    Attributes:
        prompts: from the prompts that happened to be drawn, and the samples of each.
        seed: from the training seed; None with fewer than 2 seeds per reference.
        reference: from the reference's own training; None with fewer than 2 references, or where `seed` is None.
    """

    prompts: Part
    seed: Part | None
    reference: Part | None


def components(values: np.ndarray, confidence: float, seed: int) -> Components:
    """Split the variance of a setting.

    The interval of the prompts' part comes from the delta method on the logarithm of the variance, since rewards are
    not normal. Those of seed and reference are generalized confidence intervals (Weerahandi 1993): every mean square is
    its expectation times a chi-square over its degrees of freedom, so inverting that draws the expectations.

    Args:
        values: (references, seeds, prompts), the mean over the samples of each prompt.
        confidence: coverage of the intervals, e.g. 0.95.
        seed: of the drawn chi-squares.

    Raises:
        ValueError: `values` does not have three axes, or fewer than two prompts.
    """
    if values.ndim != 3 or values.shape[2] < 2:
        raise ValueError(f"values of shape {values.shape}; (references, seeds, prompts) with two prompts or more")
    references, seeds, prompts = values.shape
    prompts_part = _prompts(values, confidence)
    if seeds < 2:
        return Components(prompts_part, None, None)
    squares = _mean_squares(values)
    random = generator(seed, "components")
    drawn = {
        name: (square, square * freedom / np.maximum(random.chisquare(freedom, DRAWS), 1e-300))
        for name, (square, freedom) in squares.items()
    }

    def part(weights: dict[str, float]) -> Part:
        variance, draws = (sum(weight * drawn[name][i] for name, weight in weights.items()) for i in (0, 1))
        tail = (1 - confidence) / 2
        low, high = np.sqrt(np.maximum(np.quantile(draws, [tail, 1 - tail]), 0.0))
        return Part(float(np.sqrt(max(float(variance), 0.0))), (float(low), float(high)))

    of_seed = part({"seed": 1 / prompts, "rest": -1 / prompts})
    if references < 2:
        return Components(prompts_part, of_seed, None)
    share = 1 / (prompts * seeds)
    of_reference = part({"reference": share, "seed": -share, "both": -share, "rest": share})
    return Components(prompts_part, of_seed, of_reference)


def _mean_squares(values: np.ndarray) -> dict[str, tuple[float, int]]:
    """Name -> mean square and degrees of freedom of the terms that the parts of seed and reference need."""
    references, seeds, prompts = values.shape
    run, reference, mean = values.mean(2), values.mean((1, 2)), values.mean()
    reference_prompt, prompt = values.mean(1), values.mean((0, 1))
    rest = values - run[:, :, None] - reference_prompt[:, None, :] + reference[:, None, None]
    sums = {
        "seed": (prompts * ((run - reference[:, None]) ** 2).sum(), references * (seeds - 1)),
        "rest": ((rest**2).sum(), references * (seeds - 1) * (prompts - 1)),
    }
    if references > 1:
        both = reference_prompt - reference[:, None] - prompt + mean
        sums["reference"] = (prompts * seeds * ((reference - mean) ** 2).sum(), references - 1)
        sums["both"] = (seeds * (both**2).sum(), (references - 1) * (prompts - 1))
    return {name: (float(total) / freedom, freedom) for name, (total, freedom) in sums.items()}


def _prompts(values: np.ndarray, confidence: float) -> Part:
    """The part of the prompts: the variance within a run, averaged over runs, divided by their number."""
    prompts = values.shape[2]
    away = ((values - values.mean(2, keepdims=True)) ** 2).mean((0, 1)) * prompts / (prompts - 1)  # (prompts,)
    variance = float(away.mean())
    sd = float(np.sqrt(variance / prompts))
    if variance == 0:
        return Part(0.0, (0.0, 0.0))
    error = float(away.std(ddof=1)) / np.sqrt(prompts) / variance  # of the logarithm of the variance
    reach = float(np.exp(stdtrit(prompts - 1, (1 + confidence) / 2) * error / 2))
    return Part(sd, (sd / reach, sd * reach))
