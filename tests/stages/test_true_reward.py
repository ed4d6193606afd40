"""A true reward is a function of a text: it is tried before work, and held against scores that are used again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from imdb_rlhf.config.reward import OwnReward as OwnConfig
from imdb_rlhf.errors import RunError
from imdb_rlhf.stages.true_reward import TrueReward

TEXTS = [f"A film, number {number}." for number in range(40)]
FOLDER = Path("groups/0")


@pytest.fixture
def own(tmp_path):
    def make(body: str) -> TrueReward:
        lines = "import numpy as np\n\ndef value(text):\n    return sum(map(ord, text)) % 97 / 97\n\n"
        (tmp_path / "own.py").write_text(
            f"{lines}def score(texts):\n    v = np.array([value(t) for t in texts])\n{body}\n"
        )
        run = SimpleNamespace(reward=OwnConfig(name="own", function=f"{tmp_path}/own.py:score", files=[], range=[]))
        flow: Any = SimpleNamespace(run=run, runtime=SimpleNamespace(device=torch.device("cpu")))
        return TrueReward(flow)

    return make


@pytest.mark.parametrize("form", ["v", "2000 + v", "1e-6 * v", "1e9 + 1e6 * v", "v < 2", "np.float32(2000 + v)"])
def test_the_same_scores_are_the_same_at_any_scale(own, form):
    reward = own(f"    return {form}")
    reward.fetch()
    stored = reward.reward.score(TEXTS).logit
    noise = np.random.default_rng(0).uniform(-1, 1, len(TEXTS))
    reward.compare(TEXTS, list(stored * (1 + 1e-7 * noise)), FOLDER)  # as float32 rounds


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("2000 + v", "2000 + 1.5 * v"),
        ("1e-7 * v", "2e-7 * v"),
        ("1e9 + 1e6 * v", "1e9 + 1e6 * v**2"),
        ("v", "v + 1e-3"),
    ],
)
def test_another_reward_is_told_at_any_scale(own, before, after):
    stored = own(f"    return {before}").reward.score(TEXTS).logit
    with pytest.raises(RunError, match="^reward=own gives .* where groups/0 holds"):
        own(f"    return {after}").compare(TEXTS, list(stored), FOLDER)


@pytest.mark.parametrize(
    "body",
    [
        "    return v - v.mean()",
        "    return v.argsort().argsort()",
        "    return v / v.max()",
        "    return v + 1e-3 * np.arange(len(v))",
        "    return 1e-8 * (v - v.mean())",
        "    return np.random.random(len(v))",
    ],
)
def test_a_reward_that_depends_on_the_other_texts_is_refused_before_work(own, body):
    with pytest.raises(RunError, match="it depends on chance or on the other texts of a call; make each score a"):
        own(body).fetch()
