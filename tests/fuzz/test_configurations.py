"""Random values for random keys: a run, or one line that names the key; never a traceback."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imdb_rlhf.config.explain import explain
from imdb_rlhf.config.keys import ALGORITHMS
from imdb_rlhf.errors import ConfigError
from tests.command import composed, run_of

WORDS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-3, 70).map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["null", "true", "False", "''", "[]", "[1,2]", "{a:1}", "nan", "-inf", "1e400", "0x10", "1_000", "auto"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
# One command line of each algorithm that is complete by itself.
COMPLETE: dict[str, list[str]] = {
    "own_model": ["own_model.path=x"],
    "realign": ["realign.path=x"],
    "ppo": ["target_kl=1"],
}


def keys_of(algo: str) -> list[str]:
    """Every key of an algorithm's default configuration, groups left out."""
    values: Any = OmegaConf.to_container(composed(f"algo={algo}", *COMPLETE.get(algo, [])))
    found: list[str] = []

    def walk(node: dict[str, Any], start: str) -> None:
        for name, value in node.items():
            walk(value, f"{start}{name}.") if isinstance(value, dict) else found.append(f"{start}{name}")

    walk(values, "")
    return found


KEYS = {algo: keys_of(algo) for algo in ALGORITHMS}


@pytest.mark.parametrize("algo", ALGORITHMS)
@given(data=st.data())
def test_any_value_of_any_key(algo: str, data: st.DataObject) -> None:
    key, word = data.draw(st.sampled_from(KEYS[algo])), data.draw(WORDS)
    try:
        run = run_of(f"algo={algo}", *COMPLETE.get(algo, []), then=f"{key}={word}")
    except (ConfigError, OmegaConfBaseException) as error:
        message = str(error) if isinstance(error, ConfigError) else explain(error)
        assert "\n" not in message, message
        assert key.rpartition(".")[2] in message or key.partition(".")[0] in message, (key, word, message)
    else:
        assert run.algo == algo or key == "algo"
