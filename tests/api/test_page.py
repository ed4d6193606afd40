"""What docs/python.md shows runs: its blocks, one after the other, on models and prompts of a test."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from imdb_rlhf.models import policy as policies
from tests import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
TEXTS = ["the film is good. the film is bad. a good cast in a bad film. I saw this film."] * 20
SIZE = 280


def test_its_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_run: Callable[..., Path]) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = policies.train_tokenizer(TEXTS, SIZE, SIZE)
    sizes = {"context": 64, "tokenizer_size": SIZE, "vocabulary": SIZE}
    for seed, name in enumerate(("my_model", "reference_model")):
        policies.save(policies.scratch(tiny.model(init_seed=seed, **sizes), tokenizer), tmp_path / name, "", 1.0)
    write_run("dpo", ("beta", 0.1), {5: (np.full((6, 2), 0.6), np.full((6, 2), 1.0))})
    names: dict[str, Any] = {"ax": Figure().subplots(), "test_prompts": ["the film", "a cast"], "others": ["this film"]}
    names |= {"values": np.random.default_rng(0).random((3, 8)), "first": np.arange(8.0), "second": np.ones(8)}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
    trainer, *others = blocks
    compile(trainer, "trainer", "exec")  # tests/api/test_load.py runs the script that it is taken from
    for block in others:
        exec(
            block.replace(
                "callback = FrontierCallback(", "from imdb_rlhf import FrontierCallback\nx = FrontierCallback("
            ),
            names,
        )
    assert len(others) == 5 and names["x"].run.path.name == "mine"
    assert set(names["frontier"].to_frame()["method"]) == {"mine", "my model"}
    assert names["rewards"].shape == (2, 4) and names["result"].samples_per_prompt == 8
    assert len(names["ax"].get_lines()) > 1
