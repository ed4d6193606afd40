"""Methods of winners and losers against their losses, a pair and a completion at a time."""

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.algos.cpo import CPO
from imdb_rlhf.algos.exo import EXO
from imdb_rlhf.algos.orpo import ORPO
from imdb_rlhf.algos.pairwise import PairwiseMethod
from imdb_rlhf.algos.preferences import PairBatch
from imdb_rlhf.algos.simpo import SimPO
from imdb_rlhf.config.families import PreferenceRun
from imdb_rlhf.config.preference_algos import SCHEMAS, CPOConfig, EXOConfig, SimPOConfig
from imdb_rlhf.data.pairs import Pairs
from tests import tiny
from tests.algos.test_preferences import table
from tests.algos.test_unlikelihood import PAIRS, make_groups

RUNS: dict[type[PairwiseMethod[Any]], dict[str, Any]] = {
    SimPO: {"beta": 1.5, "simpo": SimPOConfig(0.4)},
    CPO: {"beta": 0.2, "cpo": CPOConfig(0.7)},
    ORPO: {"lam": 0.3},
    EXO: {"beta": 0.2, "exo": EXOConfig(0.05)},
}


def make(kind: type[PairwiseMethod[Any]], lm: PreTrainedModel, temperature: float) -> PairwiseMethod[Any]:
    generation = tiny.generation(temperature=temperature)
    run = tiny.run(SCHEMAS[kind.stage], generation=generation, **RUNS[kind])
    return kind(tiny.policy(lm), make_groups(), Pairs(PAIRS, PAIRS[:, 0] // 3, {}), run)


def naive(kind: type[PairwiseMethod[Any]], up: Tensor, down: Tensor, ratio: Tensor, lengths: tuple[int, int]) -> Tensor:
    """The loss of one pair: its log-probs, the difference of its log-ratios and its lengths."""
    mean_up, mean_down = up / lengths[0], down / lengths[1]
    if kind is SimPO:
        return torch.log1p(torch.exp(-(1.5 * (mean_up - mean_down) - 0.6)))
    if kind is CPO:
        return torch.log1p(torch.exp(-0.2 * (up - down))) - 0.7 * mean_up
    if kind is ORPO:
        odds = [mean.exp() / (1 - mean.exp()) for mean in (mean_up, mean_down)]
        return -mean_up + 0.3 * torch.log1p(odds[1] / odds[0])
    chance = 1 / (1 + torch.exp(-0.2 * ratio))
    return chance * torch.log(chance / 0.95) + (1 - chance) * torch.log((1 - chance) / 0.05)


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", RUNS, ids=lambda kind: kind.stage)
def test_the_loss_is_the_naive_one(kind: type[PairwiseMethod[Any]], temperature: float, limit: int | None) -> None:
    lm, groups = tiny.gpt2(1), make_groups()
    algorithm = make(kind, lm, temperature)
    batch = cast(PairBatch, next(algorithm.batches(0)))
    losses, ratios = [], []
    for pair in batch.pairs:
        prompts, completions = ([groups[name][row] for row in pair] for name in ("prompt_ids", "completion_ids"))
        up, down = (
            tiny.completion_logprob(lm, prompt, completion, temperature)
            for prompt, completion in zip(prompts, completions, strict=True)
        )
        ratios.append((up - groups["ref_logprob"][pair[0]]).item())
        ratio = up - down - (groups["ref_logprob"][pair[0]] - groups["ref_logprob"][pair[1]])
        losses.append(naive(kind, up, down, ratio, (len(completions[0]), len(completions[1]))))
    expected = torch.stack(losses).mean()
    expected.backward()
    expected_gradient = tiny.gradients(lm)
    loss, metrics = tiny.run_batch(algorithm, batch, limit)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (tiny.gradients(lm) - expected_gradient).norm() < 1e-4 * expected_gradient.norm()
    assert metrics["train/chosen_log_ratio"] == pytest.approx(math.fsum(ratios) / len(ratios), abs=1e-4)


@pytest.mark.parametrize("name", ["kto", *(kind.stage for kind in RUNS)])
def test_every_method_is_made_from_inputs_and_read_by_step(name: str, tmp_path: Path) -> None:
    table(3).to_parquet(tmp_path / "groups.parquet")
    lm = tiny.gpt2(width=8, layers=1, heads=1, dropout=0.5).requires_grad_(False).train()
    inputs = tiny.FixedInputs(tiny.policy(lm), tiny.gpt2(), tiny.runtime(), groups=tmp_path)
    kind = SCHEMAS[name]
    assert issubclass(kind, PreferenceRun)
    algorithm = ALGOS[name].from_inputs(inputs, tiny.run(kind, policy=tiny.steps(batch_size=4)))
    assert algorithm.stage == name
    assert algorithm.summary_line() == "18 pairs, 5 steps"
    assert not algorithm.module.training  # no dropout
    losses = []
    for first in (0, 3):
        batches = list(algorithm.batches(first))
        assert len(batches) == 5 - first
        (part,) = batches[-1].parts(0, 1, None)
        losses.append(algorithm.loss(algorithm.module, part))
    assert losses[0][0].item() == losses[1][0].item()
    losses[0][0].backward()
    assert all(parameter.grad is not None for parameter in algorithm.module.parameters())
