"""measure: reward and exact KL of any model, by enumeration and by plain forward passes."""

from typing import Any

import numpy as np
import pytest
import torch

from imdb_rlhf import ConfigError, Measurement, RunError, World, measure
from imdb_rlhf.evaluation.evaluate import COLUMNS, TEXTS
from tests import tiny
from tests.api.worlds import NEW, PROMPTS, brute, enumerated, models, share_of_vowels, world


@pytest.fixture(scope="module")
def measured() -> Measurement:
    lm, reference = models()
    return measure(
        lm, reference, tiny.tokenizer(), PROMPTS, share_of_vowels, samples=3, max_new_tokens=NEW, bootstrap=500
    )


def test_every_sample_is_scored_as_plain_forward_passes_score_it(measured: Measurement) -> None:
    lm, reference = models()
    assert list(measured.rows.columns) == COLUMNS + TEXTS and len(measured.rows) == len(PROMPTS) * 3
    for row in measured.rows.to_dict("records"):
        assert [row["kl"], row["kl_k1"]] == pytest.approx(
            brute(lm, reference, row["prompt_ids"], row["completion_ids"]), abs=1e-5
        )
        text = row["prompt"] + row["completion"]
        assert text.startswith(PROMPTS[row["prompt_id"]])
        assert [row["reward"]] == share_of_vowels([text])
    assert measured.kl == pytest.approx(measured.rows["kl"].mean()) and measured.kl > 0.5
    assert measured.kl_k1 == pytest.approx(measured.rows["kl_k1"].mean())
    assert measured.reward_ci[0] <= measured.reward <= measured.reward_ci[1]


def test_the_means_are_those_of_all_completions() -> None:
    lm, reference = (tiny.scattered_gpt2(seed, vocabulary=5) for seed in (1, 2))
    prompts = [[1, 2], [3]]
    exact = np.array([enumerated(lm, reference, prompt, 2) for prompt in prompts])
    found = measure(
        lm,
        reference,
        tiny.tokenizer(5),
        prompts,
        share_of_vowels,
        samples=500,
        max_new_tokens=2,
        batch_size=500,
        bootstrap=100,
    )
    for at, column in enumerate(("reward", "kl")):
        values = found.array(column)
        error = values.std(1) / len(values[0]) ** 0.5
        assert (abs(values.mean(1) - exact[:, at]) < 4.5 * error + 1e-9).all()
    assert found.kl == pytest.approx(exact[:, 1].mean(), rel=0.1)


def test_the_win_rate_counts_pairs_of_samples(measured: Measurement) -> None:
    table = measured.samples
    assert list(table["log_ratio"]) == list(measured.rows["kl_k1"])
    wins = []
    for _, part in table.groupby("prompt_id"):
        for own in part["policy_reward"]:
            wins += [1.0 if own > other else 0.5 if own == other else 0.0 for other in part["reference_reward"]]
    assert measured.win_rate == pytest.approx(np.mean(wins))
    assert measured.reference["reward"] == pytest.approx(table["reference_reward"].mean())


def test_the_reference_is_at_no_distance_from_itself() -> None:
    reference = models()[1]
    found = world(reference).measure(reference)
    assert found.kl == 0 and found.kl_ci == [0, 0] and found.reward == found.reference["reward"]
    assert found.win_rate == pytest.approx(0.5, abs=0.2)
    assert "KL (nats)  0.000" in str(found) and found.to_dict()["prompts"] == len(PROMPTS)


def test_a_model_in_bf16_and_in_training_is_measured_in_float32_and_left_as_it_was() -> None:
    lm, reference = models()
    half = lm.to(torch.bfloat16)
    half.transformer.h[0].train()
    before = [(parameter.data_ptr(), parameter.dtype, parameter.detach().clone()) for parameter in half.parameters()]
    modes, state = [module.training for module in half.modules()], torch.get_rng_state()
    found = world(reference).measure(half)
    after = [(parameter.data_ptr(), parameter.dtype, parameter.detach()) for parameter in half.parameters()]
    for one, other in zip(before, after, strict=True):
        assert one[:2] == other[:2] and torch.equal(one[2], other[2])
    assert modes == [module.training for module in half.modules()] and torch.equal(state, torch.get_rng_state())
    assert found.kl == world(reference).measure(half.float().eval()).kl


def test_a_model_is_taken_from_a_folder(tmp_path: Any) -> None:
    lm, reference = models()
    for name, model in (("policy", lm), ("reference", reference)):
        model.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    sampling: dict[str, Any] = {"samples": 2, "max_new_tokens": NEW, "bootstrap": 100}
    found = measure(str(tmp_path / "policy"), tmp_path / "reference", None, PROMPTS, share_of_vowels, **sampling)
    live = measure(lm, reference, tiny.tokenizer(), PROMPTS, share_of_vowels, **sampling)
    assert found.rows["completion"].tolist() == live.rows["completion"].tolist()
    assert found.kl == pytest.approx(live.kl, abs=1e-5)  # another attention kernel


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": "one text"}, "prompts is one text"),
        ({"prompts": ["bc", ""]}, r"prompts\[1\] is empty"),
        ({"prompts": ["bc", [1]]}, "texts and rows of tokens"),
        ({"prompts": [[1, 99]]}, r"prompts\[0\] holds token 99, and the reference has 19 entries"),
        ({"prompts": [[{"role": "user"}]]}, "apply_chat_template"),
        ({"prompts": ["b" * 14]}, "more than the 16 that the reference reads"),
        ({"samples": 0}, "samples=0 is out of range"),
        ({"samples": 2.5}, "samples=2.5 is not a whole number"),
        ({"temperature": float("nan")}, "temperature=nan is not a finite number"),
        ({"shortest_limit": 9}, "shortest_limit=9 is out of range"),
        ({"reward": "lexicon"}, "reward is a str; give a function"),
        ({"tokenizer": None}, "tokenizer is missing"),
    ],
)
def test_what_is_refused_before_anything_is_sampled(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"tokenizer": tiny.tokenizer(), "prompts": PROMPTS, "reward": share_of_vowels} | changes
    sampling: dict[str, Any] = {
        key: arguments.pop(key) for key in ("samples", "temperature", "shortest_limit") if key in arguments
    }
    with pytest.raises(ConfigError, match=message) as refused:
        World(models()[1], **arguments, **(sampling | {"max_new_tokens": NEW}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda texts: [0.0], r"gave shape \(1,\) for \d+ texts; return one float per text"),
        (lambda texts: [float("nan")] * len(texts), "gave nan for the text"),
        (lambda texts: 1 / 0, "raised ZeroDivisionError"),
        (lambda texts: [None] * len(texts), "gave nan for the text"),
    ],
)
def test_a_reward_that_is_refused(reward: Any, message: str) -> None:
    lm, reference = models()
    with pytest.raises(RunError, match=message) as refused:
        measure(lm, reference, tiny.tokenizer(), PROMPTS, reward, samples=3, max_new_tokens=NEW)
    assert "\n" not in str(refused.value)


def test_models_that_are_refused() -> None:
    one = world()
    with pytest.raises(RunError, match="the model has 21 entries and the reference 19"):
        one.measure(tiny.gpt2(vocabulary=21))
    with pytest.raises(RunError, match="model is a Linear; give a causal LM"):
        one.measure(torch.nn.Linear(2, 2))
    broken = tiny.gpt2()
    with torch.no_grad():
        broken.transformer.wte.weight[3, 0] = float("nan")
    with pytest.raises(RunError, match="holds weights that are nan"):
        one.measure(broken)


def test_a_model_of_another_tokenizer_is_refused(tmp_path: Any) -> None:
    tiny.gpt2().save_pretrained(tmp_path)
    tiny.tokenizer(eos=1).save_pretrained(tmp_path)
    with pytest.raises(RunError, match="ends a completion with 'b', but the reference with 'a'"):
        world().measure(tmp_path)
