"""Keys that say where something is stored."""

from dataclasses import fields
from pathlib import Path

import pytest

from imdb_rlhf.config.keys import CLASSES, PLACES
from imdb_rlhf.config.places import hashed, places_of
from tests.command import run_of


def test_every_path_id_and_revision_is_a_place() -> None:
    named = {"path", "hub_id", "revision", "preferences", "function", "file"}
    keys = {(schema, field.name) for schema in CLASSES.values() for field in fields(schema) if field.name in named}
    assert len(keys) > 10
    assert not {f"{schema.__name__}.{name}" for schema, name in keys if name not in places_of(schema)}


def test_places_of_sections_that_several_kinds_fill() -> None:
    assert {"model.path", "data.path", "data.hub_id", "reward.path", "reward.function", "own_model.path"} <= PLACES
    assert not PLACES & {"paths.outputs", "model.name", "beta"}


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["data=imdb"], "data.path"),
        (["model=gpt2"], "model.path"),
        (["reward=siebert"], "reward.path"),
        (["reward=siebert"], "reward.revision"),
        ([], "sft.path"),
        ([], "data.preferences"),
        (["algo=own_model"], "own_model.path"),
    ],
)
def test_a_configuration_without_places_is_the_same_wherever_things_are(overrides: list[str], key: str) -> None:
    here, there = (run_of(*overrides, f"{key}={place}") for place in ("a/b/c", "d/e/f"))
    assert here != there
    assert hashed(here) == hashed(there)
    section, _, name = key.partition(".")
    assert name not in hashed(here)[section]


def test_what_is_left_is_everything_else() -> None:
    left = hashed(run_of("experiment=imdb_cpu", "data.path=reviews"))
    assert (left["algo"], left["data"]["prompts"]["min_tokens"], left["data"]["br"]) == ("dpo", 2, "newline")
    assert left["policy"]["optim"]["lr"] == run_of("experiment=imdb_cpu").policy.optim.lr  # type: ignore[attr-defined]
    assert Path(left["paths"]["outputs"]).name == "outputs"


def test_a_later_key_that_is_null_is_left_out() -> None:
    assert "min_characters" not in hashed(run_of("data=imdb"))["data"]
    assert hashed(run_of("data=imdb", "data.min_characters=201"))["data"]["min_characters"] == 201
    assert hashed(run_of())["policy"]["steps"] is None  # other keys stay, null or not
