"""Methods on fixed preferences against the population optimum of their loss, on the world of test_closed_forms.py.

Where the optimum has a closed form it is that. Else the loss over all pairs that the reference can give is written down
here, pair by pair, and minimised over a table of log-probs, which no model restricts.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.algos.bon_sft import BonSFT
from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.kto import KTO
from imdb_rlhf.config.algos import Divergence, DPORun
from imdb_rlhf.config.preference_algos import SCHEMAS, BonSFTRun, CPOConfig, EXOConfig, KTORun, SimPOConfig
from imdb_rlhf.training.runtime import Runtime
from tests import test_closed_forms as world
from tests import tiny
from tests.enumeration import exact_kl, exact_policy
from tests.test_closed_forms import COMPLETIONS, LENGTH, LOG_REF, RANGE, REWARDS, adam, fit, log_law

groups, runtime = world.groups, world.runtime  # fixtures
REF = np.exp(LOG_REF)

# --- f-DPO


def divergence(name: str, ratio: np.ndarray) -> np.ndarray:
    """f(u), arXiv 2309.16240, table 1; alpha is 1/2."""
    return {
        "forward_kl": -np.log(ratio),
        "js": ratio * np.log(ratio) - (ratio + 1) * np.log((ratio + 1) / 2),
        "alpha": 4 * (1 + ratio) / 2 - 4 * np.sqrt(ratio),
    }[name]


INVERSE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "forward_kl": lambda slope: 1 / (1 - slope),  # of 1 - 1/u
    "js": lambda slope: 1 / (2 * np.exp(-slope) - 1),  # of log(2u / (1 + u))
    "alpha": lambda slope: (1 - slope / 2) ** -2.0,  # of 2 (1 - u^-1/2)
}
LARGEST_SLOPE = {"forward_kl": 1.0, "js": math.log(2), "alpha": 2.0}


def f_optimum(name: str, beta: float) -> np.ndarray:
    """(prompts, completions) probabilities: f'(pi / ref) = r / beta - c with c such that they sum to 1."""
    rows = []
    for rewards, ref in zip(REWARDS / beta, REF, strict=True):
        low = rewards.max() - LARGEST_SLOPE[name]

        def excess(c: float, rewards: np.ndarray = rewards, ref: np.ndarray = ref) -> float:
            return float(ref @ INVERSE[name](rewards - c)) - 1

        rows.append(ref * INVERSE[name](rewards - brentq(excess, low + 1e-9, low + 100, xtol=1e-12)))
    return np.stack(rows)


def f_value(name: str, pi: np.ndarray, beta: float) -> float:
    """Mean reward - beta D_f(pi || ref), mean over prompts."""
    return float(((pi * REWARDS) - beta * REF * divergence(name, pi / REF)).sum(1).mean())


@pytest.mark.parametrize(
    "name", ["forward_kl", pytest.param("js", marks=pytest.mark.slow), pytest.param("alpha", marks=pytest.mark.slow)]
)
def test_f_dpo_reaches_its_optimum(name: str, runtime: Runtime, groups: Path, tmp_path: Path) -> None:
    beta = 2.0  # at 1 the optimum is near the largest slope, where scores saturate and training is slow
    order = 0.5 if name == "alpha" else None
    dpo = tiny.dpo(divergence=Divergence(name), divergence_alpha=order)
    algorithm = DPO.from_inputs(world.inputs(runtime, groups), world.preferences(DPORun, 256, 250, beta=beta, dpo=dpo))
    fit(algorithm, runtime, adam(lr=2e-3), tmp_path)
    best = f_optimum(name, beta)
    assert best.sum(1) == pytest.approx(1)
    values = [f_value(name, pi, beta) for pi in (best, REF, np.exp(log_law(algorithm.module.lm)))]
    assert values[0] - values[1] > 0.05 * RANGE
    assert -1e-6 <= values[0] - values[2] <= 0.01 * RANGE
    assert np.abs(best - np.exp(world.optimum(beta))).sum(1).max() > 0.1  # it is not reverse KL's


# --- losses of pairs

# (log pi of winners, log pi of losers, log ref of both) -> losses
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def odds(mean: Tensor) -> Tensor:
    return mean.exp() / (1 - mean.exp())


LOSSES: dict[str, tuple[dict[str, Any], Loss]] = {
    "exo": (
        {"beta": 1.0, "exo": EXOConfig(0.1)},
        lambda up, down, ref_up, ref_down: exo_by_hand(up - ref_up - down + ref_down, 0.1),
    ),
    "simpo": (
        {"beta": 3.0, "simpo": SimPOConfig(0.3)},
        lambda up, down, ref_up, ref_down: F.softplus(-(3.0 * (up - down) / LENGTH - 0.9)),
    ),
    "cpo": (
        {"beta": 1.0, "cpo": CPOConfig(1.0)},
        lambda up, down, ref_up, ref_down: F.softplus(down - up) - up / LENGTH,
    ),
    "orpo": (
        {"lam": 1.0},
        lambda up, down, ref_up, ref_down: -up / LENGTH + torch.log1p(odds(down / LENGTH) / odds(up / LENGTH)),
    ),
}


def exo_by_hand(margin: Tensor, error: float) -> Tensor:
    chance = torch.sigmoid(margin)
    return chance * torch.log(chance / (1 - error)) + (1 - chance) * torch.log((1 - chance) / error)


def population(loss: Loss, log_pi: Tensor) -> Tensor:
    """The mean loss of pairs of different samples of the reference under Bradley-Terry labels, mean over prompts."""
    ref = torch.tensor(LOG_REF)
    weights = torch.tensor(world.win_chances()) * torch.exp(ref[:, :, None] + ref[:, None])
    weights = weights * (1 - torch.eye(len(COMPLETIONS), dtype=torch.float64))
    losses = loss(log_pi[:, :, None], log_pi[:, None], ref[:, :, None], ref[:, None])
    return ((weights * losses).sum((1, 2)) / weights.sum((1, 2))).mean()


def best_table(loss: Loss) -> Tensor:
    """(prompts, completions) log-probs that minimise the population's loss."""
    table = torch.tensor(LOG_REF, requires_grad=True)
    solver = torch.optim.LBFGS([table], max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = population(loss, table.log_softmax(-1))
        value.backward()
        return value

    solver.step(closure)
    assert table.grad is not None and table.grad.abs().max() < 1e-5
    return table.detach().log_softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_pairs_reaches_its_optimum(name: str, runtime: Runtime, groups: Path, tmp_path: Path) -> None:
    changes, loss = LOSSES[name]
    best = best_table(loss)
    algorithm = ALGOS[name].from_inputs(
        world.inputs(runtime, groups), world.preferences(SCHEMAS[name], 256, 300, **changes)
    )
    fit(algorithm, runtime, adam(lr=2e-3), tmp_path)
    law = torch.tensor(log_law(algorithm.module.lm))
    least, reached, begun = (float(population(loss, table)) for table in (best, law, torch.tensor(LOG_REF)))
    assert least <= reached <= least + 0.02 * (begun - least)


def test_what_is_known_of_optima_without_a_reference() -> None:
    """CPO's comparison alone and SimPO without a margin forget it: exp(r / beta) and exp(length r / beta)."""
    tables = {
        1.5: best_table(lambda up, down, ref_up, ref_down: F.softplus(1.5 * (down - up))),
        6.0 / LENGTH: best_table(lambda up, down, ref_up, ref_down: F.softplus(6.0 * (down - up) / LENGTH)),
    }
    for scale, table in tables.items():
        wanted = torch.tensor(REWARDS / scale).log_softmax(-1)
        assert table.numpy() == pytest.approx(wanted.numpy(), abs=1e-3)


def test_exo_with_uncertain_labels_is_near_ipos_optimum() -> None:
    """A small l = log((1 - e) / e) keeps margins where its loss is a square: ref * exp(2 l p / beta), as IPO's."""
    error = 0.45
    size = math.log((1 - error) / error)
    table = best_table(lambda up, down, ref_up, ref_down: exo_by_hand(up - ref_up - down + ref_down, error))
    wins = (world.win_chances() * REF[:, None]).sum(2)
    wanted = torch.tensor(LOG_REF + 2 * size * wins).log_softmax(-1)
    assert (table - wanted).abs().max() < 0.05 * (wanted - torch.tensor(LOG_REF)).abs().max()


# --- KTO


def test_kto_makes_likelier_what_wins_more_often_than_it_loses(runtime: Runtime, groups: Path, tmp_path: Path) -> None:
    """Its loss is linear in sigmoid(gain), so a completion's share of wins alone decides its direction."""
    share = (world.win_chances() * REF[:, None]).sum(2)
    run = world.preferences(KTORun, 128, 60, beta=0.5)
    algorithm = KTO.from_inputs(world.inputs(runtime, groups), run)
    fit(algorithm, runtime, adam(lr=2e-3), tmp_path)
    before, after = ((np.exp(law) * (share > 0.5)).sum(1) for law in (LOG_REF, log_law(algorithm.module.lm)))
    assert (after > 1.2 * before).all()


# --- best-of-N distillation


@pytest.mark.parametrize("n", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_sft_on_the_best_of_n_reaches_the_law_of_best_of_n(
    n: int, runtime: Runtime, groups: Path, tmp_path: Path
) -> None:
    run = world.preferences(BonSFTRun, 64, 250, n=n)
    algorithm = BonSFT.from_inputs(world.inputs(runtime, groups), run)
    fit(algorithm, runtime, adam(lr=2e-3), tmp_path)
    law = log_law(algorithm.module.lm)
    for row, ref in enumerate(REF):
        best = exact_policy(ref, REWARDS[row], n)
        assert float(best @ np.log(best / ref)) == pytest.approx(exact_kl(ref, REWARDS[row], n))
        assert float(best @ (np.log(best) - law[row])) < 0.05 * exact_kl(ref, REWARDS[row], n)
