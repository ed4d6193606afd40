"""Keys of the methods on fixed preferences that do not go together, and what names their runs."""

from typing import Any

import pytest

from tests.command import refusal, run_of


@pytest.mark.parametrize(
    ("values", "start"),
    [
        (["algo=kto", "policy.batch_size=1"], "policy.batch_size=1 leaves algo=kto no completion of another prompt"),
        (["algo=kto", "kto.lambda_d=0", "kto.lambda_u=0"], "kto.lambda_d=0 and kto.lambda_u=0 leave no loss"),
        (["algo=exo", "exo.label_smoothing=0"], "exo.label_smoothing=0.0 is out of range; give a number above 0"),
        (["algo=simpo", "simpo.gamma_beta_ratio=-1"], "simpo.gamma_beta_ratio=-1.0 is out of range"),
        (["algo=orpo", "beta=1"], "beta=1: no such key for algo=orpo"),
        (["dpo.divergence=js", "dpo.loss=ipo"], "dpo.divergence=js is used by dpo.loss=sigmoid alone"),
        (["dpo.divergence=alpha"], "dpo.divergence=alpha needs dpo.divergence_alpha"),
        (["dpo.divergence_alpha=0.5"], "dpo.divergence_alpha=0.5 is used by dpo.divergence=alpha alone"),
        (["dpo.divergence=alpha", "dpo.divergence_alpha=1"], "dpo.divergence_alpha=1.0 is out of range"),
    ],
)
def test_what_does_not_go_together_is_refused(values: list[str], start: str) -> None:
    assert refusal(*values).startswith(start)


@pytest.mark.parametrize(
    ("values", "knob", "variant"),
    [
        (["algo=kto"], ("beta", 0.1), None),
        (["algo=kto", "kto.lambda_u=0"], ("beta", 0.1), None),
        (["algo=simpo"], ("beta", 2.0), None),
        (["algo=cpo", "cpo.nll_weight=0"], ("beta", 0.1), None),
        (["algo=exo"], ("beta", 0.1), None),
        (["algo=orpo", "lam=0"], ("lam", 0.0), None),
        (["dpo.divergence=forward_kl", "dpo.label_smoothing=0.1"], ("beta", 0.1), "forward_kl"),
        (["dpo.divergence=alpha", "dpo.divergence_alpha=0.5"], ("beta", 0.1), "alpha"),
    ],
)
def test_knobs_and_variants(values: list[str], knob: Any, variant: str | None) -> None:
    run = run_of(*values)
    assert (run.knob, run.variant) == (knob, variant)


@pytest.mark.parametrize(
    ("experiment", "algo"), [("default", "orpo"), ("imdb_cpu", "cpo"), ("paper", "kto"), ("smoke", "exo")]
)
def test_they_see_dpos_pairs_and_train_as_it_does(experiment: str, algo: str) -> None:
    dpo, run = (run_of(f"experiment={experiment}", f"algo={name}") for name in ("dpo", algo))
    for section in ("pairs", "groups", "policy"):
        assert getattr(run, section) == getattr(dpo, section)
