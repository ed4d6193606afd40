"""DPO's losses against naive ones, which take a pair or a ranking and its completions one at a time."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.preferences import PairBatch, RankingBatch
from imdb_rlhf.config.algos import DPOConfig, DPOLoss, DPORun
from imdb_rlhf.config.stages import Order
from imdb_rlhf.data.pairs import draw_pairs, shuffled
from imdb_rlhf.data.rankings import Rankings, draw_rankings
from imdb_rlhf.models.logprobs import Rows, sequence_logprobs
from tests import tiny

BETA = 0.3


def make_groups(prompts: int, reference: PreTrainedModel | None = None, temperature: float = 1.0) -> pd.DataFrame:
    """A group table with 4 completions of each prompt, and the reference's log-probs if one is given."""
    random, rows = np.random.default_rng(0), []
    for prompt in range(prompts):
        prompt_ids = random.integers(1, 19, size=2 + prompt % 4).tolist()
        for sample in range(4):
            completion_ids = random.integers(1, 19, size=1 + int(random.integers(7))).tolist()
            completion_ids[0] = 1 + 4 * sample + int(random.integers(4))  # so that no two are equal
            ref_logprob = 0.0
            if reference is not None:
                with torch.no_grad():
                    ref_logprob = float(tiny.completion_logprob(reference, prompt_ids, completion_ids, temperature))
            rows.append((prompt, sample, prompt_ids, completion_ids, random.normal(), ref_logprob))
    columns = ["prompt_id", "sample_id", "prompt_ids", "completion_ids", "reward_logit", "ref_logprob"]
    return pd.DataFrame(rows, columns=columns)


def run(
    batch_size: int = 64,
    order: Order = Order.prefix,
    temperature: float = 1.0,
    dpo: DPOConfig | None = None,
    steps: int | None = None,
) -> DPORun:
    return tiny.run(
        DPORun,
        beta=BETA,
        generation=tiny.generation(temperature=temperature),
        policy=tiny.steps(batch_size=batch_size, steps=steps),
        pairs=tiny.pairs(order=order),
        dpo=dpo or tiny.dpo(),
    )


def ratios(
    lm: PreTrainedModel, groups: pd.DataFrame, rows: Any, temperature: float = 1.0, average: bool = False
) -> list[Tensor]:
    """The log-ratio of each of these rows, a completion at a time; divided by its tokens if `average`."""
    log_ratios = []
    for row in (groups.iloc[int(index)] for index in rows):
        ratio = tiny.completion_logprob(lm, row.prompt_ids, row.completion_ids, temperature) - row.ref_logprob
        log_ratios.append(ratio / len(row.completion_ids) if average else ratio)
    return log_ratios


def first_batch(algorithm: DPO) -> PairBatch:
    return cast(PairBatch, next(algorithm.batches(0)))


def all_pairs(algorithm: DPO, first: int) -> list[Any]:
    return [cast(PairBatch, batch).pairs.tolist() for batch in algorithm.batches(first)]


# --- losses of pairs


def sigmoid(h: Tensor) -> Tensor:
    """Equation 7 of arXiv 2305.18290."""
    return -F.logsigmoid(BETA * h)


def conservative(h: Tensor) -> Tensor:
    return -0.8 * torch.log(torch.sigmoid(BETA * h)) - 0.2 * torch.log(torch.sigmoid(-BETA * h))


def robust(h: Tensor) -> Tensor:
    return (-0.8 * torch.log(torch.sigmoid(BETA * h)) + 0.2 * torch.log(torch.sigmoid(-BETA * h))) / 0.6


def ipo(h: Tensor) -> Tensor:
    return (h - 1 / (2 * BETA)) ** 2


def hinge(h: Tensor) -> Tensor:
    return 1 - BETA * h if BETA * h < 1 else 0 * h


@pytest.mark.parametrize("limit", [None, 1, 5])
@pytest.mark.parametrize(
    ("config", "loss_of_margin", "temperature"),
    [
        (tiny.dpo(), sigmoid, 1.0),
        (tiny.dpo(), sigmoid, 0.7),
        (tiny.dpo(DPOLoss.sigmoid, 0.2), conservative, 1.0),
        (tiny.dpo(DPOLoss.robust, 0.2), robust, 1.0),
        (tiny.dpo(DPOLoss.ipo), ipo, 1.0),
        (tiny.dpo(DPOLoss.ipo, average_logprobs=True), ipo, 1.0),
        (tiny.dpo(DPOLoss.hinge), hinge, 1.0),
    ],
)
def test_loss_gradient_and_metrics_are_those_of_pairs_one_by_one(
    config: DPOConfig, loss_of_margin: Callable[[Tensor], Tensor], temperature: float, limit: int | None
) -> None:
    lm, groups = tiny.gpt2(1), make_groups(4, tiny.gpt2(0), temperature)
    pairs = draw_pairs(groups, tiny.pairs(), 0)
    algorithm = DPO(tiny.policy(lm), groups, pairs, run(18, temperature=temperature, dpo=config))
    batch = first_batch(algorithm)
    assert batch.size == 18
    losses, log_ratios = [], []
    for pair in batch.pairs:
        chosen, rejected = ratios(lm, groups, pair, temperature, config.average_logprobs)
        losses.append(loss_of_margin(chosen - rejected))
        with torch.no_grad():
            log_ratios.append([float(ratio) for ratio in ratios(lm, groups, pair, temperature)])
    expected = torch.stack(losses).mean()
    expected.backward()
    expected_gradient = tiny.gradients(lm)
    # the policy is not the reference
    assert abs(float(expected.detach()) - float(loss_of_margin(torch.zeros(())))) > 0.01

    loss, metrics = tiny.run_batch(algorithm, batch, limit)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (tiny.gradients(lm) - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
    # the metrics are of whole sequences whatever the loss reads
    chosen, rejected = np.array(log_ratios).T
    assert 0 < (chosen > rejected).mean() < 1
    assert metrics == pytest.approx(
        {
            "train/accuracy": (chosen > rejected).mean(),
            "train/margin": BETA * (chosen - rejected).mean(),
            "train/chosen_log_ratio": chosen.mean(),
            "train/rejected_log_ratio": rejected.mean(),
        },
        abs=1e-5,
    )


def test_the_order_of_pairs_does_not_change_the_gradient() -> None:
    lm, groups = tiny.gpt2(1), make_groups(5, tiny.gpt2(0))
    pairs = draw_pairs(groups, tiny.pairs(), 0)
    losses, gradients, batches = [], [], []
    for order in (Order.prefix, Order.shuffled):
        algorithm = DPO(tiny.policy(lm), groups, pairs, run(len(pairs.rows), order))
        batches.append(first_batch(algorithm).pairs.tolist())
        losses.append(tiny.run_batch(algorithm, first_batch(algorithm), 7)[0])
        gradients.append(tiny.gradients(lm))
    assert batches[0] != batches[1]
    assert sorted(batches[0]) == sorted(batches[1])  # the same pairs
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_pairs_of_a_prompt_share_their_completions() -> None:
    groups = make_groups(200)
    pairs = draw_pairs(groups, tiny.pairs(), 0)
    assert len(pairs.rows) == 1200

    def distinct(order: Order) -> list[int]:
        rows = pairs.rows[shuffled(pairs, order, 0, 0)]
        return [len(np.unique(rows[at : at + 64])) for at in range(0, 1152, 64)]

    together, apart = distinct(Order.prefix), distinct(Order.shuffled)
    assert max(together) <= 48
    assert 42 <= np.mean(together) <= 46  # 64 / 6 prompts of 4 completions, and some that are cut at both ends
    assert min(apart) > 100


def test_the_first_step_has_a_loss_of_ln_2_with_stored_log_probs() -> None:
    reference, lm = tiny.gpt2(0), tiny.gpt2(0)
    groups = make_groups(40)
    rows = Rows.of(list(groups["prompt_ids"]), list(groups["completion_ids"]))
    groups["ref_logprob"] = sequence_logprobs(reference, rows).tolist()  # one batch, padded otherwise
    algorithm = DPO(tiny.policy(lm), groups, draw_pairs(groups, tiny.pairs(), 0), run())
    loss, metrics = tiny.run_batch(algorithm, first_batch(algorithm))
    assert loss == pytest.approx(math.log(2), abs=1e-4 * BETA)
    assert abs(metrics["train/margin"]) < 1e-4 * BETA


def test_dropout_is_off() -> None:
    groups = make_groups(3)
    policy = tiny.policy(tiny.gpt2(1, dropout=0.5).train())
    algorithm = DPO(policy, groups, draw_pairs(groups, tiny.pairs(), 0), run())
    batch = first_batch(algorithm)
    assert tiny.run_batch(algorithm, batch)[0] == tiny.run_batch(algorithm, batch)[0]


def test_steps_and_batches_are_functions_of_the_configuration() -> None:
    groups = make_groups(10)
    pairs = draw_pairs(groups, tiny.pairs(), 0)
    algorithm = DPO(tiny.policy(tiny.gpt2(0)), groups, pairs, run(24))
    assert algorithm.steps == 3  # 60 pairs
    every = all_pairs(algorithm, 0)
    assert all_pairs(algorithm, 2) == every[2:]
    first_epoch = [pair for batch in every for pair in batch][:60]
    assert sorted(first_epoch) == sorted(pairs.rows.tolist())
    assert DPO(tiny.policy(tiny.gpt2(0)), groups, pairs, run(24, steps=7)).steps == 7


# --- rankings


def chain(lm: PreTrainedModel, groups: pd.DataFrame, ranking: list[int]) -> Tensor:
    """-log of a ranking's probability as a chain of choices (appendix A.3 of arXiv 2305.18290)."""
    scores = [BETA * ratio for ratio in ratios(lm, groups, ranking)]
    probability = torch.ones(())
    for place in range(len(scores) - 1):
        probability = probability * scores[place].exp() / sum(score.exp() for score in scores[place:])
    return -torch.log(probability)


def uneven() -> tuple[pd.DataFrame, Rankings]:
    """Rankings of 4, 3 and 2 completions; one leaves out equal texts."""
    groups = make_groups(5, tiny.gpt2(0))
    groups.loc[[5, 9, 10], "reward_logit"] = groups.loc[[4, 8, 8], "reward_logit"].to_numpy()
    completion_ids = groups["completion_ids"].tolist()
    groups["completion_ids"] = [*completion_ids[:19], completion_ids[16]]
    rankings = draw_rankings(groups, tiny.pairs(), 0)
    assert rankings.mask.sum(1).tolist() == [4, 3, 2, 4, 3]
    return groups, rankings


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_plackett_luce_is_the_naive_loss(limit: int | None) -> None:
    groups, rankings = uneven()
    lm = tiny.gpt2(1)
    algorithm = DPO(tiny.policy(lm), groups, rankings, run(5, dpo=tiny.dpo(DPOLoss.plackett_luce)))
    batch = cast(RankingBatch, next(algorithm.batches(0)))
    assert batch.size == 5
    orders = [row[mask].tolist() for row, mask in zip(batch.rankings, batch.mask, strict=True)]
    expected = torch.stack([chain(lm, groups, ranking) for ranking in orders]).mean()
    expected.backward()
    expected_gradient = tiny.gradients(lm)
    loss, metrics = tiny.run_batch(algorithm, batch, limit)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    gradient = tiny.gradients(lm)
    assert gradient.isfinite().all()
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()

    with torch.no_grad():
        log_ratios = [[float(ratio) for ratio in ratios(lm, groups, ranking)] for ranking in orders]
    right = [np.mean([one > after for one, after in zip(row, row[1:], strict=False)]) for row in log_ratios]
    best, worst = (np.mean([row[place] for row in log_ratios]) for place in (0, -1))
    assert 0 < np.mean(right) < 1
    assert metrics == pytest.approx(
        {
            "train/accuracy": np.mean(right),
            "train/margin": BETA * (best - worst),
            "train/chosen_log_ratio": best,
            "train/rejected_log_ratio": worst,
        },
        abs=1e-5,
    )


def test_rankings_of_two_are_pairs() -> None:
    groups = make_groups(6, tiny.gpt2(0))
    groups = groups[groups["sample_id"] < 2].reset_index(drop=True)
    lm = tiny.gpt2(1)
    pairs = DPO(tiny.policy(lm), groups, draw_pairs(groups, tiny.pairs(), 0), run(6))
    rankings = DPO(
        tiny.policy(lm), groups, draw_rankings(groups, tiny.pairs(), 0), run(6, dpo=tiny.dpo(DPOLoss.plackett_luce))
    )
    assert pairs.steps == rankings.steps
    loss_of_pairs, metrics_of_pairs = tiny.run_batch(pairs, next(pairs.batches(0)))
    gradient_of_pairs = tiny.gradients(lm)
    loss, metrics = tiny.run_batch(rankings, next(rankings.batches(0)))
    assert loss == pytest.approx(loss_of_pairs, abs=1e-6)
    assert metrics == pytest.approx(metrics_of_pairs, abs=1e-6)
    assert (tiny.gradients(lm) - gradient_of_pairs).norm() < 1e-5 * gradient_of_pairs.norm()


def test_plackett_luce_draws_rankings_from_the_artifact(tmp_path: Path) -> None:
    groups = make_groups(10).assign(reward=0.0, prompt="", completion="", finished=True)
    groups.loc[[1, 2, 3, 7], "reward_logit"] = groups.loc[[0, 0, 0, 6], "reward_logit"].to_numpy()
    groups.to_parquet(tmp_path / "groups.parquet")
    inputs = tiny.FixedInputs(tiny.policy(tiny.gpt2(0)), tiny.gpt2(0), tiny.runtime(), groups=tmp_path)
    algorithm = DPO.from_inputs(inputs, run(4, dpo=tiny.dpo(DPOLoss.plackett_luce)))
    assert isinstance(algorithm.drawn, Rankings)
    assert algorithm.summary_line() == "9 rankings, 3 steps; left out: 4 equal rewards, 1 ranking of one"
    every = [cast(RankingBatch, batch).rankings.tolist() for batch in algorithm.batches(0)]
    assert [cast(RankingBatch, batch).rankings.tolist() for batch in algorithm.batches(1)] == every[1:]
    epoch = [ranking for batch in every for ranking in batch][:9]
    assert sorted(epoch) == sorted(algorithm.drawn.rows.tolist()) != epoch
