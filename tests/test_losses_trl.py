"""PPO's arithmetic against the numbers of TRL 0.11.4, which tests/trl_ppo_vectors.py wrote down."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imdb_rlhf.losses import gae, next_kl_coefficient, ppo_policy_loss, ppo_value_loss, token_rewards, whiten

VECTORS = json.loads((Path(__file__).parent / "trl_ppo_vectors.json").read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in VECTORS["cases"]}
# what stands in the padding behind a completion reaches TRL's advantages once rewards are whitened
CLEAN = [name for name, case in CASES.items() if not (case["whiten_rewards"] and case["padding"] == "right")]
every_case = pytest.mark.parametrize("name", CASES)
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def close(actual: Tensor | float, trl: Tensor | float) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(trl), rtol=0, atol=1e-5, check_dtype=False)


def rewards_of(case: dict[str, Any], mask: Tensor, dtype: torch.dtype) -> Tensor:
    tables = (torch.tensor(case[key], dtype=dtype) for key in ("logprobs", "ref_logprobs", "scores"))
    logprobs, ref_logprobs, scores = tables
    return token_rewards(logprobs, ref_logprobs, mask, scores, case["kl_coefficient"])


def token_losses(case: dict[str, Any], new: dict[str, Tensor], policy_clip: float, value_clip: float) -> list[Tensor]:
    """Losses of single tokens on TRL's advantages and returns."""
    dtype = new["logprobs"].dtype
    old = {key: torch.tensor(case[key], dtype=dtype) for key in ("logprobs", "values")}
    trl = {key: torch.tensor(case["trl"][key], dtype=dtype) for key in ("advantages", "returns")}
    return [
        ppo_policy_loss(new["logprobs"], old["logprobs"], trl["advantages"], policy_clip),
        ppo_value_loss(new["values"], old["values"], trl["returns"], value_clip),
    ]


def test_the_vectors_reach_every_branch() -> None:
    assert VECTORS["versions"]["trl"] == "0.11.4"
    assert {case["whiten_rewards"] for case in CASES.values()} == {False, True}
    assert {CASES[name]["whiten_rewards"] for name in CLEAN} == {False, True}
    for case in CASES.values():
        assert min(case["lengths"]) == 1
        assert max(case["lengths"]) == len(case["mask"][0])
        assert 0 < case["trl"]["clip_fraction"] < 1
        assert 0 < case["trl"]["value_clip_fraction"] < 1


@both_precisions
@every_case
def test_rewards(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    mask = torch.tensor(case["mask"], dtype=torch.bool)
    close(rewards_of(case, mask, dtype)[mask], torch.tensor(case["trl"]["rewards"])[mask])


@both_precisions
@pytest.mark.parametrize("name", CLEAN)
def test_advantages_and_returns(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    mask = torch.tensor(case["mask"], dtype=torch.bool)
    rewards = rewards_of(case, mask, dtype)
    if case["whiten_rewards"]:
        rewards = whiten(rewards, mask, keep_mean=True, bessel=True)
    advantages, returns = gae(rewards, torch.tensor(case["values"], dtype=dtype), mask, case["gamma"], case["lam"])
    close(whiten(advantages, mask, bessel=True)[mask], torch.tensor(case["trl"]["advantages"])[mask])
    close(returns[mask], torch.tensor(case["trl"]["returns"])[mask])


def test_where_ours_differs_whitened_rewards_do_not_reach_a_completion_from_its_padding() -> None:
    case = CASES["whitened_rewards_and_padding"]
    mask = torch.tensor(case["mask"], dtype=torch.bool)
    rewards, values = rewards_of(case, mask, torch.float64), torch.tensor(case["values"], dtype=torch.float64) * mask
    whitened = whiten(rewards, mask, keep_mean=True, bessel=True)
    trl = torch.tensor(case["trl"]["returns"], dtype=torch.float64)

    returns = gae(whitened, values, mask, case["gamma"], case["lam"])[1]
    whole = mask.all(-1)
    close(returns[whole], trl[whole])
    assert ((returns - trl)[~whole & mask[:, 0]].abs().amax(-1) > 1e-3).all()

    # TRL's: a masked 0 becomes mean - mean/std, and goes on as if it were a token's reward
    mean, std = rewards[mask].mean(), rewards[mask].std(correction=1)
    leaking = torch.where(mask, whitened, mean - mean / std)
    advantages, returns = gae(leaking, values, torch.ones_like(mask), case["gamma"], case["lam"])
    close(returns, trl)
    close(whiten(advantages, mask, bessel=True)[mask], torch.tensor(case["trl"]["advantages"])[mask])


@both_precisions
@every_case
def test_losses_and_their_gradients(name: str, dtype: torch.dtype) -> None:
    case, trl = CASES[name], CASES[name]["trl"]
    mask = torch.tensor(case["mask"], dtype=torch.bool)
    new = {key: torch.tensor(case[f"new_{key}"], dtype=dtype, requires_grad=True) for key in ("logprobs", "values")}
    policy, value = token_losses(case, new, case["cliprange"], case["cliprange_value"])
    total = policy[mask].mean() + case["vf_coef"] * value[mask].mean()
    close(policy[mask].mean(), trl["policy_loss"])
    close(value[mask].mean(), trl["value_loss"])
    close(total, trl["total_loss"])
    total.backward()
    for key, tensor in new.items():
        assert tensor.grad is not None
        close(tensor.grad, torch.tensor(trl[f"new_{key}_gradient"]))


@every_case
def test_clipping_binds_at_the_same_share_of_tokens(name: str) -> None:
    case = CASES[name]
    mask = torch.tensor(case["mask"], dtype=torch.bool)
    new = {key: torch.tensor(case[f"new_{key}"], dtype=torch.float64) for key in ("logprobs", "values")}
    clipped = token_losses(case, new, case["cliprange"], case["cliprange_value"])
    free = token_losses(case, new, math.inf, math.inf)
    shares = [(a > b)[mask].double().mean() for a, b in zip(clipped, free, strict=True)]
    close(shares[0], case["trl"]["clip_fraction"])
    close(shares[1], case["trl"]["value_clip_fraction"])


@every_case
def test_the_controller_reads_the_mean_of_sums_over_sequences(name: str) -> None:
    case = CASES[name]
    mask = torch.tensor(case["mask"])
    log_ratio = torch.tensor(case["logprobs"]) - torch.tensor(case["ref_logprobs"])
    kl = float((log_ratio * mask).sum(-1).mean())
    close(kl, case["trl"]["kl"])
    actual = next_kl_coefficient(
        case["kl_coefficient"], kl, case["target"], len(mask), case["horizon"], low=0.0, high=math.inf
    )
    assert actual == pytest.approx(case["trl"]["next_kl_coefficient"], rel=1e-6)


def test_the_controller_over_batches() -> None:
    given = VECTORS["controller"]
    coefficient, coefficients = given["kl_coefficient"], []
    for kl in given["kls"]:
        coefficient = next_kl_coefficient(
            coefficient, kl, given["target"], given["episodes"], given["horizon"], low=0.0, high=math.inf
        )
        coefficients.append(coefficient)
    assert coefficients == pytest.approx(given["trl"], rel=1e-8)
