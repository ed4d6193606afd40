"""Keys and choices that do not exist are answered with the ones that do."""

import pytest

from imdb_rlhf.config.keys import closest, edits, owners, unknown_choice
from tests.command import refusal

PPO = "algo=ppo"


# --- a misspelt word


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("", "", 0),
        ("beta", "beta", 0),
        ("bata", "beta", 1),  # replaced
        ("betta", "beta", 1),  # one more
        ("bea", "beta", 1),  # one less
        ("beat", "beta", 1),  # swapped
        ("", "seed", 4),
        ("kitten", "sitting", 3),
        ("ca", "abc", 3),  # a swapped pair is not changed again
    ],
)
def test_slips_between_two_words(one, other, expected):
    assert edits(one, other) == edits(other, one) == expected


@pytest.mark.parametrize(
    ("word", "candidates", "expected"),
    [
        ("bata", ["data", "beta"], "beta"),  # a first letter is seldom wrong
        ("Best-Of-N", ["best_of_n", "dpo"], "best_of_n"),
        ("gpt2_large", ["gpt2", "gpt2-large"], "gpt2-large"),
        ("dop", ["ppo", "dpo"], "dpo"),
        ("grpo", ["ppo", "dpo"], None),
        ("k", ["n"], None),  # too short for a slip
        ("colour", ["model", "logger"], None),
        ("beta", [], None),
    ],
)
def test_the_closest_word(word, candidates, expected):
    assert closest(word, candidates) == expected


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("bata=0.1", "beta"),
        ("beat=0.1", "beta"),
        ("seeed=1", "seed"),
        ("alog=dpo", "algo"),
        ("modle=tiny", "model"),
        ("rewrad=own", "reward"),
        ("experimnt=smoke", "experiment"),
        ("gruops.k=2", "groups"),
        ("keep-model=none", "keep_model"),
        ("policy.stesp=3", "policy.steps"),
        ("pairs.lables=noisy", "pairs.labels"),
        ("pairs.margin=1", "pairs.min_margin"),
        ("sft.epoch=1", "sft.epochs"),
        ("sft.paths=there", "sft.path"),
        ("generation.max_tokens=3", "generation.max_new_tokens"),
        ("evaluation.evry=3", "evaluation.every"),
        # the place is missing, or only a part of it is there
        ("max_new_tokens=16", "generation.max_new_tokens"),
        ("max-new-tokens=16", "generation.max_new_tokens"),
        ("k=2", "groups.k"),
        ("tau=2", "pairs.tau"),
        ("policy.lr=1e-4", "policy.optim.lr"),
        ("layers=3", "model.layers"),
        ("temprature=2", "generation.temperature"),
        ("max_tokens=3", "data.prompts.max_tokens or sft.max_tokens"),
        ("target_k=3", "target_kl of algo=ppo"),
    ],
)
def test_a_misspelt_key(override, meant):
    message = refusal(override)
    assert message.startswith(f"{override}: no such key") and f"; did you mean {meant}? keys there: " in message


@pytest.mark.parametrize(
    ("override", "place"),
    [("policy.optim.beta1=0.5", "policy.optim"), ("data.path=reviews", "data"), ("reward.epochs=3", "reward")],
)
def test_a_key_of_another_choice(override, place):
    assert f"{override}: no such key; another choice of {place} has it; keys there: {place}." in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "meant"),
    [
        (["algo=best-of-n"], "algo=best_of_n"),
        (["algo=Best_of_N"], "algo=best_of_n"),
        (["algo=preferred-ft"], "algo=preferred_ft"),
        (["algo=dop"], "algo=dpo"),
        (["algo=ppo", "ppo=trl-2023"], "ppo=trl_2023"),
        (["model=gpt2_large"], "model=gpt2-large"),
        (["experiment=imdb-cpu"], "experiment=imdb_cpu"),
        (["reward=two-label"], "reward=two_label"),
        (["data=imbd"], "data=imdb"),
        (["logger=wanb"], "logger=wandb"),
    ],
)
def test_a_misspelt_choice(overrides, meant):
    assert refusal(*overrides).startswith(f"{overrides[-1]}: no such choice; did you mean {meant}? there are ")


def test_the_answer_to_a_choice_lists_the_others():
    options = ["dpo", "sft"]
    near = "algo=dop: no such choice; did you mean algo=dpo? there are dpo, sft"
    assert unknown_choice("algo", "dop", options) == near
    assert unknown_choice("algo", "x", options) == "algo=x: no such choice; there are dpo, sft"


def test_owners_are_the_algorithms_with_the_root_key():
    assert owners("ppo.gamma") == owners("ppo") == ["ppo"]
    assert [algo for algo in owners("policy") if algo in ("sft", "dpo", "ppo", "preferred_ft")] == [
        "dpo",
        "preferred_ft",
    ]
    assert owners("experiment") == []


# --- keys of other algorithms, choices that do not exist


@pytest.mark.parametrize(
    ("overrides", "start", "names"),
    [
        (["algo=sft", "beta=0.3"], "beta=0.3: no such key for algo=sft", "generation"),
        (["algo=sft", "+beta=0.3"], "beta=0.3: no such key for algo=sft", "generation"),
        (["algo=sft", "++beta=0.3"], "beta=0.3: no such key for algo=sft", "generation"),
        (["algo=sft", "groups.k=4"], "groups.k=4: no such key for algo=sft", "generation"),
        (["algo=sft", "+pairs.ties=drop"], "pairs={'ties': 'drop'}: no such key for algo=sft", "generation"),
        (["target_kl=3"], "target_kl=3: no such key for algo=dpo", "beta"),
        (["+target_kl=3"], "target_kl=3: no such key for algo=dpo", "beta"),
        (["policy.step=3"], "policy.step=3: no such key; did you mean policy.steps?", "policy.optim"),
        (["+policy.step=3"], "policy.step=3: no such key for algo=dpo; did you mean policy.steps?", "policy.optim"),
        (["policy.optim.beta1=0.5"], "policy.optim.beta1=0.5: no such key", "policy.optim.alpha"),
        (["sft.optim.alpha=0.5"], "sft.optim.alpha=0.5: no such key", "sft.optim.weight_decay"),
        (["model=gpt2", "model.layers=3"], "model.layers=3: no such key", "model.path"),
        (["data.path=reviews"], "data.path=reviews: no such key", "data.labelled_reviews"),
        (["logger=none", "logger.project=x"], "logger.project=x: no such key", "logger.tensorboard"),
        (["reward.epochs=3"], "reward.epochs=3: no such key", "reward.name"),
        (["ppo.gamma=0.9"], "ppo.gamma=0.9: no such key for algo=dpo; it belongs to algo=ppo", "beta"),
        ([PPO, "beta=0.1"], "beta=0.1: no such key for algo=ppo; it belongs to algo=dpo", "target_kl"),
        (["algo=sft", "n=4"], "n=4: no such key for algo=sft; it belongs to algo=best_of_n", "seed"),
        (
            ["algo=unlikelihood", "dpo.loss=ipo"],
            "dpo.loss=ipo: no such key for algo=unlikelihood; it belongs to algo=dpo",
            "alpha",
        ),
        (["algo=preferred_ft", "alpha=1"], "alpha=1: no such key for algo=preferred_ft; it belongs to", "policy"),
        (["algo=preferred_ft", "+alpha=1"], "alpha=1: no such key for algo=preferred_ft; it belongs to", "policy"),
        (
            ["algo=reward_model", "reservoir.samples=8"],
            "reservoir.samples=8: no such key for algo=reward_model; it belongs to algo=best_of_n, ppo, ",
            "reward_model",
        ),
        (
            ["algo=best_of_n", "policy.steps=3"],
            "policy.steps=3: no such key for algo=best_of_n; it belongs to algo=dpo, ",
            "reservoir",
        ),
        (["+ppo=trl_2023"], "target_kl: no such key for algo=dpo; it belongs to algo=ppo", "beta"),
        ([PPO, "ppo.foo=2"], "ppo.foo=2: no such key; keys there: ", "ppo.gamma"),
        ([PPO, "ppo.gama=0.9"], "ppo.gama=0.9: no such key; did you mean ppo.gamma? keys there: ", "ppo.lam"),
        (["betta=0.1"], "betta=0.1: no such key for algo=dpo; did you mean beta? keys there: ", "policy"),
    ],
)
def test_a_key_that_is_not_used(overrides, start, names):
    message = refusal(*overrides)
    assert message.startswith(start) and names in message.partition(":")[2]


@pytest.mark.parametrize(
    ("override", "start", "choices"),
    [
        ("algo=sarsa", "algo=sarsa: no such choice; there are", ["dpo", "sft"]),
        ("model=gpt3", "model=gpt3: no such choice; did you mean model=gpt2? there are", ["tiny"]),
        ("data=yelp", "data=yelp: no such choice; there are", ["embedded", "imdb"]),
        ("reward=vader", "reward=vader: no such choice; there are", ["lexicon", "siebert"]),
        ("optim@policy.optim=sgd", "optim=sgd: no such choice; there are", ["adamw", "rmsprop"]),
        ("experiment=mine", "experiment=mine: no such choice; there are", ["default", "imdb_cpu"]),
        ("colour=red", "colour=red: no such key for algo=dpo", ["model"]),
    ],
)
def test_an_unknown_choice(override, start, choices):
    message = refusal(override)
    assert message.startswith(start)
    assert all(choice in message.partition(":")[2] for choice in choices)


def test_a_preset_of_another_algorithm():
    message = "ppo=... chooses a preset of algo=ppo, and this is another algorithm; add algo=ppo"
    for overrides in (["ppo=trl_2023"], ["algo=unlikelihood", "ppo=small"], ["ppo=small", "algo=sft"]):
        assert refusal(*overrides) == message
    chosen = refusal("algo=ppo", "ppo=mine")
    assert chosen.startswith("ppo=mine: no such choice; there are ") and " paper, " in chosen


def test_an_optimizer_of_another_algorithm():
    message = refusal("algo=ppo", "optim@policy.optim=adamw")
    assert message.startswith("optim@policy.optim: no such group for this algorithm; it belongs to algo=dpo, ")
