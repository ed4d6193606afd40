"""Policies that are decoded from several models against their closed forms, on the world of `test_closed_forms.py`.

With the exact action value, guided sampling is reference * exp(reward / beta) / Z itself: its law, its samples, its
log-probs and its KL.
"""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from imdb_rlhf.algos.distill import Distill
from imdb_rlhf.algos.value import Rewarded, ValueLearning, bins_of, centres_of
from imdb_rlhf.config.decoding import DistillConfig, DistillRun, Divergence
from imdb_rlhf.evaluation.evaluate import evaluate
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import Rows
from imdb_rlhf.models.mixtures import DecodedPolicy, Guided, Realigned
from imdb_rlhf.models.next_token import NextToken
from imdb_rlhf.models.sampling import sample, uniforms
from imdb_rlhf.models.value import ActionValue, make_value
from imdb_rlhf.training.runtime import Runtime
from tests import tiny
from tests.test_closed_forms import (
    COMPLETIONS,
    EOS,
    GENERATION,
    INDEX,
    LENGTH,
    LOG_REF,
    PROMPTS,
    REFERENCE,
    REWARDS,
    TEMPERATURE,
    TOKENS,
    Lookup,
    adam,
    drawn,
    fit,
    inputs,
    language_model,
    log_law,
    moved,
    optimum,
    reward_and_kl,
    score,
)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return tiny.runtime()


class ExactHead:
    """log E[exp(r / beta) | prefix, token] by enumeration; a prefix is known by the reference's state at its end."""

    def __init__(self) -> None:
        ends = [(tokens[:length], tokens[length:]) for tokens in COMPLETIONS for length in range(LENGTH)]
        begun = [tokens for tokens, rest in ends if not any(rest)]  # each once
        self.prefixes = [(prompt, tokens) for prompt in range(len(PROMPTS)) for tokens in begun]
        with torch.no_grad():
            states = [
                REFERENCE.base_model(input_ids=torch.tensor([PROMPTS[prompt] + tokens])).last_hidden_state[0, -1]
                for prompt, tokens in self.prefixes
            ]
        self.ends = torch.stack(states)
        assert len(self.prefixes) == 2 * (1 + 3 + 9)
        assert float(torch.pdist(self.ends).min()) > 0.01

    def log_tilt(self, states: Tensor, beta: float, entries: slice) -> Tensor:
        distances, found = (states[:, None] - self.ends).norm(dim=2).min(1)
        assert float(distances.max()) < 1e-3
        places = [self.prefixes[at] for at in found.tolist()]
        tilts = [[self.tilt(prompt, begun, token, beta) for token in range(TOKENS)] for prompt, begun in places]
        return torch.tensor(tilts)[:, entries].float()

    @staticmethod
    def tilt(prompt: int, prefix: list[int], token: int, beta: float) -> float:
        begun = [*prefix, token]
        below = [at for at, tokens in enumerate(COMPLETIONS) if tokens[: len(begun)] == begun]
        logs = LOG_REF[prompt, below]
        return float(np.logaddexp.reduce(logs + REWARDS[prompt, below] / beta) - np.logaddexp.reduce(logs))


def exactly_guided(beta: float) -> Guided:
    value = SimpleNamespace(own=False, lm=REFERENCE, head=ExactHead())
    return Guided(REFERENCE, cast(ActionValue, value), beta, TEMPERATURE)


def law_of(model: NextToken) -> np.ndarray:
    """(prompts, completions) log-probs by the package's own scoring, with exact KLs that fit them."""
    rows = [Rows.of([prompt] * len(COMPLETIONS), COMPLETIONS) for prompt in PROMPTS]
    compared = [compare(model, REFERENCE, each, TEMPERATURE) for each in rows]
    for one, log_ref in zip(compared, LOG_REF, strict=True):
        log_pi = one.logprob.numpy()
        assert one.ref_logprob.numpy() == pytest.approx(log_ref, abs=1e-4)
        kl = float(np.exp(log_pi) @ (log_pi - log_ref))
        assert float(np.exp(log_pi) @ one.kl.numpy()) == pytest.approx(kl, abs=1e-5)
    return np.stack([one.logprob.numpy() for one in compared])


def assert_near(law: np.ndarray, beta: float) -> None:
    """A policy is within 1 % of the optimum, as a share of the range of the rewards; the reference is far from it."""
    (best, best_kl), (reward, kl) = reward_and_kl(optimum(beta)), reward_and_kl(law)
    start, _ = reward_and_kl(LOG_REF)
    assert (best - beta * best_kl) - start > 0.05 * np.ptp(REWARDS)
    assert -1e-6 <= ((best - beta * best_kl) - (reward - beta * kl)) / float(np.ptp(REWARDS)) <= 0.01


@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_with_the_exact_value_it_is_the_optimum(beta: float) -> None:
    assert law_of(exactly_guided(beta)) == pytest.approx(optimum(beta), abs=2e-4)


def test_its_samples_are_those_of_the_optimum() -> None:
    """Prompts of both lengths in one batch; chi square on each."""
    count, law = 2000, np.exp(optimum(1.0))
    prompts = [PROMPTS[at % 2] for at in range(2 * count)]
    random = np.random.default_rng(3).random((2 * count, LENGTH))
    completions = sample(exactly_guided(1.0), prompts, random, EOS, TEMPERATURE).ids
    for prompt in range(2):
        counts = np.bincount([INDEX[tuple(ids)] for ids in completions[prompt::2]], minlength=len(COMPLETIONS))
        wanted = count * law[prompt]
        rare = wanted < 10
        counts, wanted = (np.append(table[~rare], table[rare].sum() + 1e-9) for table in (counts, wanted))
        assert ((counts - wanted) ** 2 / wanted).sum() < len(wanted) + 4 * math.sqrt(2 * len(wanted))


def test_its_evaluation_estimates_the_enumerated_numbers(runtime: Runtime) -> None:
    policy = DecodedPolicy(exactly_guided(1.0), tiny.tokenizer(TOKENS + 1, EOS))
    config = tiny.evaluation(samples=400, batch_size=400, bootstrap=100)
    frame = evaluate(policy, REFERENCE, Lookup(), {"test": PROMPTS}, config, GENERATION, runtime, 0)
    law = optimum(1.0)
    for prompt, rows in frame.groupby("prompt_id"):
        at = int(str(prompt))
        pi, log_ratio = np.exp(law[at]), (law - LOG_REF)[at]
        for column, mean in {"reward": pi @ REWARDS[at], "kl": pi @ log_ratio, "kl_k1": pi @ log_ratio}.items():
            assert abs(rows[column].mean() - mean) < 4 * rows[column].std() / math.sqrt(len(rows))


@pytest.mark.parametrize("own", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_learned_value_reaches_the_optimum_of_every_beta(own: bool, runtime: Runtime, tmp_path: Path) -> None:
    """Through the package's own loop, from samples of the reference and their rewards; one value, two betas."""
    groups = drawn("groups", 3000)
    prompt_ids = [PROMPTS[at] for at, completions in enumerate(groups) for _ in completions]
    completion_ids = [ids for completions in groups for ids in completions]
    rewards = score(prompt_ids, completion_ids)
    centres = centres_of(rewards, 40)
    start = tiny.gpt2(vocabulary=TOKENS, context=8, width=48, layers=1, spread=0.14)
    start.load_state_dict(REFERENCE.state_dict())
    network = make_value(start, torch.tensor(centres), 8, 0, own=own)
    data = Rewarded(prompt_ids, completion_ids, bins_of(rewards, centres))
    learning = ValueLearning(network, data, 256, 10.0, 0)
    fit(learning, runtime, adam(lr=1e-2), tmp_path)
    for beta in (1.0, 0.7):
        assert_near(law_of(Guided(REFERENCE, network, beta, TEMPERATURE)), beta)


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0, 1.5])
def test_realignment_is_the_normalised_product_of_powers(lam: float) -> None:
    """From plain logits, step by step; at 0 the reference and at 1 the policy, sampled too."""
    other = moved().lm
    mixture = Realigned(REFERENCE, other, lam)
    wanted = np.zeros(LOG_REF.shape)
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt + tokens for tokens in COMPLETIONS])
        with torch.no_grad():
            steps = [
                (lm(input_ids=ids).logits[:, len(prompt) - 1 : -1].double() / TEMPERATURE).log_softmax(-1)
                for lm in (REFERENCE, other)
            ]
        mixed = ((1 - lam) * steps[0] + lam * steps[1]).log_softmax(-1)
        wanted[row] = mixed.gather(2, ids[:, len(prompt) :, None]).sum((1, 2)).numpy()
    assert law_of(mixture) == pytest.approx(wanted, abs=1e-4)
    random = uniforms(0, "test", range(len(PROMPTS)), 1, LENGTH)[:, 0]
    for end, lm in ((0.0, REFERENCE), (1.0, other)):
        if lam == end:
            assert wanted == pytest.approx(log_law(lm), abs=1e-4)
            both = [sample(model, PROMPTS, random, EOS, TEMPERATURE).ids for model in (mixture, lm)]
            assert both[0] == both[1]


@pytest.mark.parametrize("divergence", [Divergence.forward, pytest.param(Divergence.reverse, marks=pytest.mark.slow)])
def test_a_student_becomes_its_teacher(divergence: Divergence, runtime: Runtime, tmp_path: Path) -> None:
    teacher = exactly_guided(1.0)
    steps = tiny.steps(batch_size=64, steps=80 if divergence == Divergence.forward else 140)
    run = tiny.run(DistillRun, generation=GENERATION, policy=steps, distill=DistillConfig(divergence), beta=1.0)
    given: Any = inputs(runtime)
    given.teacher, given.prompts = teacher, PROMPTS
    algorithm = Distill.from_inputs(given, run)
    fit(algorithm, runtime, adam(lr=3e-3), tmp_path)
    law, best = log_law(language_model(algorithm)), optimum(1.0)
    assert (np.exp(best) * (best - LOG_REF)).sum(1).mean() > 0.2
    assert (np.exp(best) * (best - law)).sum(1).mean() < 0.01
    assert_near(law, 1.0)
