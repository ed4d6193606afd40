"""Every method against its closed form, through the package's own loop and algorithms, on a world that is enumerated.

The world: 3 tokens, 27 completions of 3 tokens (no token ends one early), 2 prompts of different lengths, a table of
rewards in 0..4, a random GPT-2 as reference, a temperature other than 1. Expected values are enumerated from plain
logits in float64. A policy's regret is the difference between the optimum's reward - beta KL and its own, as a share of
the range of the rewards.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.preferred_ft import PreferredFT
from imdb_rlhf.algos.unlikelihood import Unlikelihood
from imdb_rlhf.config.algos import DPOLoss, DPORun, PPORun, PreferredFTRun, UnlikelihoodRun
from imdb_rlhf.config.optim import AdamWConfig
from imdb_rlhf.config.ppo import KLControl, Scale, ValueNetwork
from imdb_rlhf.config.run import Run
from imdb_rlhf.config.stages import Labels
from imdb_rlhf.data.pairs import draw_pairs, flip
from imdb_rlhf.evaluation import best_of_n
from imdb_rlhf.evaluation.evaluate import evaluate
from imdb_rlhf.losses import mean_kl
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import LogProbs, Rows, sequence_logprobs
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.sampling import sample, uniforms
from imdb_rlhf.rewards import Scores
from imdb_rlhf.training.runtime import Runtime
from tests import tiny
from tests.enumeration import exact_kl

R = TypeVar("R", bound=Run)

TOKENS, LENGTH, TEMPERATURE, RANGE = 3, 3, 0.8, 4.0
PROMPTS = [[1], [2, 0]]
COMPLETIONS = [list(tokens) for tokens in product(range(TOKENS), repeat=LENGTH)]
GENERATION = tiny.generation(max_new_tokens=LENGTH, temperature=TEMPERATURE)
INDEX = {tuple(tokens): at for at, tokens in enumerate(COMPLETIONS)}
K, GROUPS = 4, 3000  # samples per group, groups per prompt
EOS = TOKENS  # not in the vocabulary, so never sampled

# --- the world, by enumeration: tables are (prompts, completions)


@torch.no_grad()
def log_law(lm: PreTrainedModel) -> np.ndarray:
    """Log-probs of all completions after each prompt, from plain logits."""
    table = np.zeros((len(PROMPTS), len(COMPLETIONS)))
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt + tokens for tokens in COMPLETIONS])
        steps = (lm(input_ids=ids).logits[:, len(prompt) - 1 : -1].double() / TEMPERATURE).log_softmax(-1)
        table[row] = steps.gather(2, ids[:, len(prompt) :, None]).sum((1, 2)).numpy()
    assert np.exp(table).sum(1) == pytest.approx(1)
    return table


REFERENCE = tiny.gpt2(vocabulary=TOKENS, context=8, width=48, layers=1, spread=0.14).requires_grad_(False)
LOG_REF = log_law(REFERENCE)
REWARDS = np.random.default_rng(0).uniform(0, RANGE, LOG_REF.shape)


def reward_and_kl(log_pi: np.ndarray, rewards: np.ndarray = REWARDS) -> tuple[float, float]:
    """Mean reward and mean KL to the reference, over prompts."""
    pi = np.exp(log_pi)
    return float((pi * rewards).sum(1).mean()), float((pi * (log_pi - LOG_REF)).sum(1).mean())


def optimum(beta: float, rewards: np.ndarray = REWARDS) -> np.ndarray:
    """Log-probs of reference * exp(reward / beta) / Z."""
    tilted = LOG_REF + rewards / beta
    return tilted - np.log(np.exp(tilted).sum(1, keepdims=True))


def regret(lm: PreTrainedModel, beta: float, rewards: np.ndarray = REWARDS) -> float:
    """How far reward - beta KL is below the optimum's, as a share of the range of the rewards."""
    best, best_kl = reward_and_kl(optimum(beta, rewards), rewards)
    reward, kl = reward_and_kl(log_law(lm), rewards)
    return ((best - beta * best_kl) - (reward - beta * kl)) / float(np.ptp(rewards))


def coefficient_of(kl: float) -> float:
    """The coefficient whose optimum has this KL, by bisection."""
    low, high = 0.01, 100.0
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reward_and_kl(optimum(middle))[1] > kl else (low, middle)
    return low


def win_chances() -> np.ndarray:
    """(prompts, completions, completions) the Bradley-Terry chance of the first to win against the second."""
    return 1 / (1 + np.exp(REWARDS[:, None] - REWARDS[:, :, None]))


# --- the inputs of algorithms


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return tiny.runtime()


def policy() -> Policy:
    """A copy of the reference."""
    return tiny.policy(deepcopy(REFERENCE), EOS)


def score(prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
    """The table, at these rows."""
    pairs = zip(prompts, completions, strict=True)
    return np.array([REWARDS[PROMPTS.index(prompt), INDEX[tuple(tokens)]] for prompt, tokens in pairs])


def drawn(stage: str, count: int) -> list[list[list[int]]]:
    """`count` samples of the reference after each prompt."""
    random = uniforms(0, stage, range(len(PROMPTS)), count, LENGTH)
    pairs = zip(PROMPTS, random, strict=True)
    return [sample(REFERENCE, [prompt] * count, draws, EOS, TEMPERATURE).ids for prompt, draws in pairs]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of groups: samples of the reference, each prompt many times over."""
    rows = []
    for prompt, completions in enumerate(drawn("groups", K * GROUPS)):
        prompt_ids = [PROMPTS[prompt]] * len(completions)
        ref_logprobs = sequence_logprobs(REFERENCE, Rows.of(prompt_ids, completions), TEMPERATURE).tolist()
        rewards = score(prompt_ids, completions)
        for at, tokens in enumerate(completions):
            rows.append((prompt * GROUPS + at // K, at % K, PROMPTS[prompt], tokens, rewards[at], ref_logprobs[at]))
    columns = ["prompt_id", "sample_id", "prompt_ids", "completion_ids", "reward_logit", "ref_logprob"]
    folder = tmp_path_factory.mktemp("groups")
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "groups.parquet")
    return folder


def inputs(runtime: Runtime, groups: Path = Path(), kl_coefficient: float = 1.0) -> tiny.FixedInputs:
    return tiny.FixedInputs(policy(), REFERENCE, runtime, groups, PROMPTS, score, kl_coefficient)


adam = partial(tiny.adamw, beta2=0.999, eps=1e-8)


def fit(algorithm: Any, runtime: Runtime, optim: AdamWConfig, folder: Path) -> None:
    """Train with the package's loop."""
    tiny.train(algorithm, tiny.settings(optim=optim), folder, runtime)


def language_model(algorithm: Any) -> PreTrainedModel:
    return cast(PreTrainedModel, algorithm.module.lm)


def assert_optimal(algorithm: Any, beta: float, rewards: np.ndarray = REWARDS) -> None:
    """The trained policy is within 1 % of the optimum; the reference is far from it."""
    assert regret(REFERENCE, beta, rewards) > 0.05
    assert -1e-6 <= regret(language_model(algorithm), beta, rewards) <= 0.01


pairs_config = partial(tiny.pairs, labels=Labels.bradley_terry)


def preferences(kind: type[R], batch_size: int, steps: int, **changes: Any) -> R:
    """A run of a preference method."""
    policy = tiny.steps(batch_size=batch_size, steps=steps)
    return tiny.run(kind, **{"generation": GENERATION, "policy": policy, "pairs": pairs_config(), **changes})


def ppo_run(target_kl: float | None = None, **changes: Any) -> PPORun:
    values = {
        "scale": Scale.logit,
        "value": ValueNetwork.own,
        "episodes": 55 * 256,
        "batch_size": 256,
        "minibatch_size": 256,
        "epochs": 4,
        "rollout_batch_size": 256,
        "gamma": 1.0,
        "lam": 0.95,
        "value_clip": 1.0,
        "value_coefficient": 0.5,
        "min_kl_coefficient": 1e-3,
    }
    return tiny.run(PPORun, target_kl=target_kl, ppo=tiny.ppo(**{**values, **changes}), generation=GENERATION)


# --- preferences


def test_the_groups_are_samples_of_the_enumerated_reference(groups: Path) -> None:
    frame = pd.read_parquet(groups / "groups.parquet")
    for prompt, rows in frame.groupby(frame["prompt_id"] // GROUPS):
        at = [INDEX[tuple(tokens)] for tokens in rows["completion_ids"]]
        law = np.exp(LOG_REF[int(str(prompt))])
        counts, wanted = np.bincount(at, minlength=len(law)), len(at) * law
        # chi square, its rarest cells together
        rare = wanted < 10
        counts, wanted = (np.append(table[~rare], table[rare].sum() + 1e-9) for table in (counts, wanted))
        assert ((counts - wanted) ** 2 / wanted).sum() < len(wanted) + 4 * math.sqrt(2 * len(wanted))
        assert rows["ref_logprob"].to_numpy() == pytest.approx(LOG_REF[int(str(prompt)), at], abs=1e-4)


@pytest.mark.parametrize(("beta", "tau"), [(1.0, None), (2.0, 0.5)])
def test_dpo_reaches_the_optimum(
    beta: float, tau: float | None, runtime: Runtime, groups: Path, tmp_path: Path
) -> None:
    run = preferences(DPORun, 256, 250, beta=beta, pairs=pairs_config(tau=tau))
    algorithm = DPO.from_inputs(inputs(runtime, groups), run)
    fit(algorithm, runtime, adam(lr=2e-3), tmp_path)
    assert_optimal(algorithm, beta * (tau or 1.0))


def test_plackett_luce_reaches_the_optimum(runtime: Runtime, groups: Path, tmp_path: Path) -> None:
    run = preferences(DPORun, 64, 250, beta=1.0, dpo=tiny.dpo(DPOLoss.plackett_luce))
    algorithm = DPO.from_inputs(inputs(runtime, groups), run)
    fit(algorithm, runtime, adam(lr=2e-3), tmp_path)
    assert_optimal(algorithm, 1.0)


def test_the_robust_loss_undoes_flipped_labels(runtime: Runtime, groups: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(groups / "groups.parquet")
    flipped = flip(draw_pairs(frame, pairs_config(), 0), 0.25, 0)
    run = preferences(DPORun, 256, 300, beta=1.0, dpo=tiny.dpo(DPOLoss.robust, 0.25))
    algorithm = DPO(policy(), frame, flipped, run)
    fit(algorithm, runtime, adam(lr=1e-3), tmp_path)
    assert_optimal(algorithm, 1.0)


def test_ipo_reaches_its_optimum(runtime: Runtime, groups: Path, tmp_path: Path) -> None:
    """Reference * exp(p / beta) / Z with p the chance to win against a sample of the reference (arXiv 2310.12036)."""
    wins = win_chances()
    run = preferences(DPORun, 256, 250, beta=0.3, dpo=tiny.dpo(DPOLoss.ipo))
    algorithm = DPO.from_inputs(inputs(runtime, groups), run)
    fit(algorithm, runtime, adam(lr=2e-3), tmp_path)
    assert_optimal(algorithm, 0.3, (wins * np.exp(LOG_REF)[:, None]).sum(2))


def test_preferred_ft_reaches_the_law_of_the_winners(runtime: Runtime, groups: Path, tmp_path: Path) -> None:
    run = preferences(PreferredFTRun, 256, 300)
    algorithm = PreferredFT.from_inputs(inputs(runtime, groups), run)
    fit(algorithm, runtime, adam(lr=1e-3), tmp_path)
    # two different samples of the reference, and the first wins
    ref, different = np.exp(LOG_REF), 1 - np.eye(len(COMPLETIONS))
    winners = ref * (win_chances() * different * ref[:, None]).sum(2)
    winners /= winners.sum(1, keepdims=True)
    assert (winners * (np.log(winners) - LOG_REF)).sum(1).mean() > 0.05
    assert (winners * (np.log(winners) - log_law(language_model(algorithm)))).sum(1).mean() < 0.01


def test_unlikelihood_without_its_second_term_is_preferred_ft(runtime: Runtime, groups: Path, tmp_path: Path) -> None:
    first = PreferredFT.from_inputs(inputs(runtime, groups), preferences(PreferredFTRun, 64, 10))
    other = Unlikelihood.from_inputs(inputs(runtime, groups), preferences(UnlikelihoodRun, 64, 10, alpha=0.0))
    for algorithm in (first, other):  # the sum over tokens and their mean differ by a factor, which Adam does not see
        fit(algorithm, runtime, adam(lr=1e-3, max_grad_norm=None), tmp_path)
    laws = [log_law(language_model(algorithm)) for algorithm in (first, other)]
    assert np.abs(laws[0] - LOG_REF).max() > 0.1
    assert laws[0] == pytest.approx(laws[1], abs=1e-3)


# --- PPO


@pytest.mark.parametrize("value", list(ValueNetwork))
def test_ppo_reaches_the_optimum(value: ValueNetwork, runtime: Runtime, tmp_path: Path) -> None:
    algorithm = PPO.from_inputs(inputs(runtime, Path(), 1.0), ppo_run(kl_coefficient=1.0, value=value))
    fit(algorithm, runtime, adam(lr=1e-3), tmp_path)
    assert_optimal(algorithm, 1.0)


def test_the_controller_settles_at_its_target(runtime: Runtime, tmp_path: Path) -> None:
    target = 0.5
    beta = coefficient_of(target)
    sizes = {"episodes": 60 * 512, "batch_size": 512, "minibatch_size": 512}
    run = ppo_run(target, value=ValueNetwork.shared, **sizes)
    algorithm = PPO.from_inputs(inputs(runtime, Path(), 1.5 * beta), run)
    fit(algorithm, runtime, adam(lr=1e-3), tmp_path)
    reward, kl = reward_and_kl(log_law(language_model(algorithm)))
    last = np.array(algorithm.history[-len(algorithm.history) // 5 :])
    assert kl == pytest.approx(target, rel=0.1)
    assert last[:, 0].mean() == pytest.approx(target, rel=0.1)
    assert algorithm.report()["ppo"]["kl_last_fifth"] == pytest.approx(last[:, 0].mean())
    assert last[:, 1].mean() == pytest.approx(beta, rel=0.25)
    best, _ = reward_and_kl(optimum(coefficient_of(kl)))
    assert reward == pytest.approx(best, abs=0.02 * RANGE)


@pytest.mark.parametrize("target", [0.25, 1.0])
def test_a_short_run_is_on_its_target(target: float, runtime: Runtime, tmp_path: Path) -> None:
    """In the shape of ppo=small, 32 batches of 256 in 3 passes: the KL is enumerated, not what the run says of it."""
    controller = {"controller": KLControl.proportional_integral, "coefficient_range": None, "lr_target_kl": 1.0}
    run = ppo_run(target, value=ValueNetwork.shared, episodes=32 * 256, epochs=3, optim=adam(lr=3e-4), **controller)
    algorithm = PPO.from_inputs(inputs(runtime, Path(), coefficient_of(target)), run)
    optim = run.optim
    assert isinstance(optim, AdamWConfig)
    fit(algorithm, runtime, optim, tmp_path)
    reward, kl = reward_and_kl(log_law(language_model(algorithm)))
    report = algorithm.outcome([0.5])["ppo"]
    assert report["kl_last_fifth"] == pytest.approx(target, rel=0.1) and report["on_target"]
    assert report["missed_because"] is None
    assert kl == pytest.approx(target, rel=0.15)
    best, _ = reward_and_kl(optimum(coefficient_of(kl)))
    assert reward == pytest.approx(best, abs=0.06 * RANGE)


# --- best of N, and the KL


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_best_of_n_is_that_of_all_draws(n: int) -> None:
    """A selector with ties picks, the reward is reported: the outcomes of all draws, by cumulative masses."""
    selectors, ref = np.round(REWARDS), np.exp(LOG_REF)
    samples = [[INDEX[tuple(tokens)] for tokens in completions] for completions in drawn("reservoir", 16 * 400)]
    for prompt, (selector, law) in enumerate(zip(selectors, ref, strict=True)):
        upto = np.array([law[selector <= level].sum() for level in selector]).clip(max=1)
        below = np.array([law[selector < level].sum() for level in selector])
        mass = np.array([law[selector == level].sum() for level in selector])
        best = law * (upto**n - below**n) / mass
        kl = float((best * np.log(best / law)).sum())
        assert exact_kl(law, selector, n) == pytest.approx(kl, abs=1e-9)
        atom = law[selector == selector.max()].sum()
        bound = float(best_of_n.kl_bound_atom(n, atom))
        assert kl - 1e-9 <= bound <= best_of_n.kl_bound(n) + 1e-9

        rows = np.array(samples[prompt]).reshape(400, 16)
        estimates = best_of_n.expected(selector[rows], REWARDS[prompt][rows], n)
        error = estimates.std() / math.sqrt(len(estimates))
        assert abs(estimates.mean() - best @ REWARDS[prompt]) < 3.5 * error


def moved() -> Policy:
    """Another policy than the reference."""
    other = policy()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in other.lm.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return other


def test_the_exact_kl_of_steps_sums_to_that_of_sequences() -> None:
    lm = moved().lm
    law = log_law(lm)
    for prompt, log_pi, log_ref in zip(PROMPTS, law, LOG_REF, strict=True):
        rows = Rows.of([prompt] * len(COMPLETIONS), COMPLETIONS)
        compared = compare(lm, REFERENCE, rows, TEMPERATURE)
        kl = float((np.exp(log_pi) * (log_pi - log_ref)).sum())
        assert kl > 0.05
        assert float(np.exp(log_pi) @ compared.kl.numpy()) == pytest.approx(kl, abs=1e-5)
        assert compared.logprob.numpy() == pytest.approx(log_pi, abs=1e-4)
        assert compared.ref_logprob.numpy() == pytest.approx(log_ref, abs=1e-4)


def test_the_mean_kl_with_a_control_variate_is_the_enumerated_one() -> None:
    """It has the enumerated mean, and less spread than k1."""
    lm, law = moved().lm, log_law(moved().lm)
    kl = float((np.exp(law) * (law - LOG_REF)).sum(1).mean())
    estimates, k1 = [], []
    for seed in range(50):
        random = uniforms(seed, "kl", range(len(PROMPTS)), 64, LENGTH)
        prompts = [prompt for prompt in PROMPTS for _ in range(64)]
        completions = sample(lm, prompts, np.concatenate(list(random)), EOS, TEMPERATURE).ids
        rows = Rows.of(prompts, completions)
        spans = [slice(len(prompt), len(prompt) + LENGTH) for prompt in prompts]
        with torch.no_grad():
            tables = [LogProbs(model, TEMPERATURE)(rows.ids, rows.starts, rows.lengths) for model in (lm, REFERENCE)]
        logprob, ref_logprob = (torch.stack([table[r, s] for r, s in enumerate(spans)]) for table in tables)
        estimates.append(mean_kl(logprob, ref_logprob))
        k1.append(float((logprob - ref_logprob).sum(-1).mean()))
    assert np.mean(estimates) == pytest.approx(kl, abs=3 * float(np.std(estimates)) / math.sqrt(50) + 0.01 * kl)
    assert np.std(estimates) < 0.5 * np.std(k1)
    assert mean_kl(logprob, logprob) == 0


class Lookup:
    """The table as a reward of texts."""

    def score(self, texts: Sequence[str]) -> Scores:
        tokens = [tiny.tokenizer(TOKENS + 1, EOS)(text)["input_ids"] for text in texts]
        values = score([row[:-LENGTH] for row in tokens], [row[-LENGTH:] for row in tokens])
        return Scores(values, values)


def test_an_evaluation_estimates_the_enumerated_numbers(runtime: Runtime) -> None:
    other = moved()
    config = tiny.evaluation(samples=1000, batch_size=1000, bootstrap=100)
    frame = evaluate(other, REFERENCE, Lookup(), {"test": PROMPTS}, config, GENERATION, runtime, 0)
    law = log_law(other.lm)
    for prompt, rows in frame.groupby("prompt_id"):
        pi, log_ratio = np.exp(law[int(str(prompt))]), (law - LOG_REF)[int(str(prompt))]
        wanted = {"reward": pi @ REWARDS[int(str(prompt))], "kl": pi @ log_ratio, "kl_k1": pi @ log_ratio}
        for column, mean in wanted.items():
            assert abs(rows[column].mean() - mean) < 4 * rows[column].std() / math.sqrt(len(rows))
