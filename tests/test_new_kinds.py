"""A new algorithm, kind of reward and kind of dataset touch the places that docs/architecture.md names, and no others.

The package is copied, the three are added to the copy, and a sweep of it draws a frontier.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# --- an algorithm: a loss, a module and its line in ALGOS, a class with its line in SCHEMAS, a YAML file

LOSS = '''

def toy(chosen: Tensor, weight: float) -> Tensor:
    """Minus the weighted log-probs of the winners, (pairs,)."""
    return -weight * chosen
'''
ALGORITHM = '''
"""A toy: the likelihood of winners up."""

from torch import Tensor, nn

from imdb_rlhf.algos.preferences import PairPart, PreferenceMethod
from imdb_rlhf.config.algos import ToyRun
from imdb_rlhf.losses import toy


class Toy(PreferenceMethod[ToyRun]):
    """Minimises the toy loss."""

    stage = "toy"
    title = "Toy Method"

    def loss(self, module: nn.Module, part: PairPart) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed losses of a part."""
        part = part.to(next(module.parameters()).device)
        logprob = module(part.rows.ids, part.rows.starts, part.rows.lengths).sum(-1)
        losses = toy(logprob[part.pairs[:, 0]], self.run.weight)
        return losses.sum(), {"train/chosen": logprob.detach().sum()}
'''
ALGORITHM_CONFIG = '''

@dataclass
class ToyRun(PreferenceRun):
    """`algo=toy`; the knob is weight."""

    weight: float

    @property
    def knob(self) -> tuple[str, float] | None:
        """The weight."""
        return "weight", self.weight


SCHEMAS["toy"] = ToyRun
'''
ALGORITHM_YAML = """# @package _global_
defaults:
  - /schema/toy@_global_
  - /stage/groups@groups
  - /stage/pairs@pairs
  - /stage/policy@policy
  - /optim@policy.optim: adamw
  - _self_
algo: toy
weight: 1.0
policy:
  steps: 2
  batch_size: 8
"""

# --- a kind of reward: a module, a class with its line in SCHEMAS, a YAML file

REWARD = '''
"""A toy: words per text, at most `most`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imdb_rlhf.config.reward import WordCountReward
from imdb_rlhf.rewards import Reward, RewardKind, Scores


class WordCount:
    """Counts words."""

    def __init__(self, most: int) -> None:
        self.most = most

    def score(self, texts: Sequence[str]) -> Scores:
        """The number of words and of letters."""
        counts = np.array([min(self.most, len(text.split()) + len(text) / 100) for text in texts])
        return Scores(counts, counts)


class Kind(RewardKind[WordCountReward]):
    """A reward far above 1."""

    range = (0.0, 300.0)

    def identity(self, key: str | None) -> Any:
        """Its limit."""
        return {"word_count": self.config.most}

    def open(self, device: torch.device, artifact: Path | None) -> Reward:
        """Nothing to load."""
        return WordCount(self.config.most)
'''
REWARD_CONFIG = '''

@dataclass
class WordCountReward(RewardConfig):
    """Words per text."""

    kind = "word_count"
    most: int


SCHEMAS["reward/word_count"] = WordCountReward
'''
REWARD_YAML = """defaults:
  - /schema/reward/word_count@_here_
name: word_count
most: 300
"""

# --- a kind of dataset: a module, a class with its line in SCHEMAS, a YAML file

DATASET = '''
"""A toy: a file with a review per line."""

from pathlib import Path

import pandas as pd

from imdb_rlhf.artifacts.files import hash_file
from imdb_rlhf.config.data import LinesData
from imdb_rlhf.data.prompts import PROMPT_ROLES
from imdb_rlhf.data.reviews import DatasetKind, Reviews


class Kind(DatasetKind[LinesData]):
    """Reviews in the order of the file."""

    place_keys = ("file",)

    def content(self) -> str:
        """A hash of the file."""
        return hash_file(Path(self.config.file))

    def divide(self, held_out: int) -> Reviews:
        """Prompts first, then SFT's reviews."""
        lines = iter(Path(self.config.file).read_text().splitlines())
        prompts = self.config.prompts
        sizes = {role: getattr(prompts, role) for role in PROMPT_ROLES} | {"sft": self.config.sft_reviews}
        texts = {role: [next(lines) for _ in range(size)] for role, size in sizes.items()}
        return Reviews(texts, pd.DataFrame(), pd.DataFrame(), {"reviews": sizes})
'''
DATASET_CONFIG = '''

@dataclass
class LinesData(DataConfig):
    """A file with a review per line."""

    kind = "lines"
    file: str


SCHEMAS["data/lines"] = LinesData
'''
DATASET_YAML = (
    (ROOT / "conf/data/embedded.yaml")
    .read_text(encoding="utf-8")
    .replace("/schema/data/embedded", "/schema/data/lines")
    .replace("name: embedded", "name: lines\nfile: ???")
)

SWEEP = """grids:
  - algo=toy weight=1,2
  - algo=best_of_n best_of_n.selector=ground_truth
"""
TINY = ["data.sft_reviews=100", "data.prompts.train=12", "data.prompts.validation=4", "data.prompts.test=8"]
TINY += ["generation.max_new_tokens=6", "evaluation.bootstrap=100", "trainer.threads=1", "trainer.device=cpu"]


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def create(file: Path, text: str) -> None:
    assert not file.exists()
    file.write_text(text.lstrip("\n"), encoding="utf-8")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a sweep of the extended copy wrote."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("imdb_rlhf", "conf", "sweeps", "hydra_plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", copy)
    package = copy / "imdb_rlhf"
    # 1. the algorithm
    append(package / "losses.py", LOSS)
    create(package / "algos" / "toy.py", ALGORITHM)
    table = package / "algos" / "__init__.py"
    code = table.read_text().replace('    "dpo": DPO,\n', '    "dpo": DPO,\n    "toy": Toy,\n')
    table.write_text(code.replace("import DPO\n", "import DPO\nfrom imdb_rlhf.algos.toy import Toy\n"))
    append(package / "config" / "algos.py", ALGORITHM_CONFIG)
    create(copy / "conf" / "algo" / "toy.yaml", ALGORITHM_YAML)
    # 2. the reward
    create(package / "rewards" / "word_count.py", REWARD)
    append(package / "config" / "reward.py", REWARD_CONFIG)
    create(copy / "conf" / "reward" / "word_count.yaml", REWARD_YAML)
    # 3. the dataset
    create(package / "data" / "lines.py", DATASET)
    append(package / "config" / "data.py", DATASET_CONFIG)
    create(copy / "conf" / "data" / "lines.yaml", DATASET_YAML.replace("labelled_reviews: 8000\n", ""))
    # 4. a figure
    create(copy / "sweeps" / "toy.yaml", SWEEP)

    reviews = copy / "reviews.txt"
    words = ["film", "plot", "dull", "fine", "cast", "great", "scene", "slow", "music", "odd", "long", "warm"]
    lines = (" ".join(words[(i * k + k) % len(words)] for k in range(1, 14)) for i in range(140))
    reviews.write_text("\n".join(f"number {i} {line}" for i, line in enumerate(lines)))
    chosen = ["experiment=smoke", "reward=word_count", "data=lines", f"data.file={reviews}"]
    places = [f"paths.outputs={copy}/outputs"]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    command = [sys.executable, "train.py", "-m", "sweep=toy", *chosen, *TINY, *places]
    ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return copy / "outputs"


def test_every_run_is_whole(outputs: Path) -> None:
    names = {path.parent.name.partition("-s0-")[0] for path in outputs.glob("runs/*/DONE")}
    assert names == {"toy-weight1", "toy-weight2", "best_of_n-n4"}


def test_the_frontier_knows_them(outputs: Path) -> None:
    (file,) = outputs.glob("sweeps/*/frontier.json")
    frontier = json.loads(file.read_text())
    (method,) = frontier["methods"]
    assert (method["name"], method["algo"], method["knob"]) == ("Toy Method", "toy", "weight")
    assert [setting["knob_value"] for setting in method["settings"]] == [1, 2]
    assert frontier["reference"]["reward"] > 1  # words, no probability
    assert frontier["optimum"]["cap"] == 300
    assert max(frontier["optimum"]["upper"]) > 1


def test_the_summary_records_the_rewards_range(outputs: Path) -> None:
    ranges = {json.loads(file.read_text())["reward_range"][1] for file in outputs.glob("runs/*/summary.json")}
    assert ranges == {300.0}


def test_the_content_of_the_dataset_is_hashed_and_not_its_place(outputs: Path) -> None:
    (file,) = outputs.glob("artifacts/data/*/inputs.json")
    inputs = json.loads(file.read_text())["inputs"]
    assert len(inputs["content"]) == 64 and "file" not in inputs["config"]
