"""A new algorithm, kind of reward and kind of dataset touch the places that docs/architecture.md names, and no others.

The repository is copied, the three are added to the copy, a sweep of it draws a frontier, and the tests that read
conf/ and the package pass there as they are.
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

    weight: Coefficient

    @property
    def knob(self) -> tuple[str, float] | None:
        """The weight."""
        return "weight", self.weight


SCHEMAS["toy"] = ToyRun
'''
ALGORITHM_YAML = """# @package _global_
# The likelihood of winners up.
defaults:
  - /schema/toy@_global_
  - /stage/groups@groups
  - /stage/pairs@pairs
  - /stage/policy@policy
  - /optim@policy.optim: adamw
  - _self_
algo: toy
# Factor of the loss; the knob of the sweep.
weight: 1.0
policy:
  optim:
    lr: 1.0e-3
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
    most: Annotated[int, Range(1, 10**6)]


SCHEMAS["reward/word_count"] = WordCountReward
'''
REWARD_YAML = """# Words per text.
defaults:
  - /schema/reward/word_count@_here_
name: word_count
# Words beyond this many do not count.
most: 300
"""

# --- a kind of dataset: a module, a class with its line in SCHEMAS, a YAML file

DATASET = '''
"""A toy: a file with a review per line."""

from pathlib import Path

import pandas as pd

from imdb_rlhf.artifacts.files import hash_file
from imdb_rlhf.config.data import LinesData
from imdb_rlhf.data.reviews import PROMPT_ROLES, DatasetKind, Reviews
from imdb_rlhf.errors import RunError


class Kind(DatasetKind[LinesData]):
    """Reviews in the order of the file."""

    @property
    def file(self) -> Path:
        """The file."""
        return Path(self.config.file).expanduser()

    def check(self) -> None:
        """Refuse a file that does not exist, or that is too short."""
        if not self.file.is_file():
            raise RunError(f"data.file={self.config.file}: no such file; give one with a review per line")
        count, wanted = len(self.file.read_text().splitlines()), sum(self._sizes().values())
        if count < wanted:
            raise RunError(f"data.file={self.config.file} has {count} lines, and {wanted} are asked for; ask for fewer")

    def content(self) -> str:
        """A hash of the file."""
        return hash_file(self.file)

    def divide(self, held_out: int) -> Reviews:
        """Prompts first, then SFT's reviews."""
        lines, sizes = iter(self.file.read_text().splitlines()), self._sizes()
        texts = {role: [next(lines) for _ in range(size)] for role, size in sizes.items()}
        return Reviews(texts, pd.DataFrame(), pd.DataFrame(), {"reviews": sizes})

    def _sizes(self) -> dict[str, int]:
        prompts = {role: getattr(self.config.prompts, role) for role in PROMPT_ROLES}
        return prompts | {"sft": self.config.sft_reviews}
'''
DATASET_CONFIG = '''

@dataclass
class LinesData(DataConfig):
    """A file with a review per line."""

    kind = "lines"
    file: Place


SCHEMAS["data/lines"] = LinesData
'''
DATASET_YAML = """# A file with a review per line.
defaults:
  - /schema/data/lines@_here_
name: lines
# Where the file is.
file: ???
# Shuffles nothing; part of the random stream of the prompts' lengths.
seed: 0
# Reviews that SFT trains on.
sft_reviews: 100
prompts:
  train: 12  # prompts whose completions become pairs
  validation: 4  # prompts that checkpoints are chosen on
  test: 8  # prompts that are reported
  # Their lengths in tokens.
  min_tokens: 2
  max_tokens: 8
# Preferences instead of sampled groups.
preferences: null
# Their commit on the Hub.
preferences_revision: null
# Their split.
preferences_split: train
# Whether rows begin with BOS.
bos: auto
# Whether its completions end in EOS.
preferences_eos: true
"""

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


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def run(copy: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in the copy, whose package it finds first."""
    environment = os.environ | {"PYTHONPATH": str(copy)}
    return subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the three additions."""
    copy = tmp_path_factory.mktemp("copy")
    beside = ("conf", "sweeps", "hydra_plugins", "benchmarks", "tests", "docs", "examples", "notebooks")
    for name in ("imdb_rlhf", *beside):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    package, tree = copy / "imdb_rlhf", copy / "docs" / "architecture.md"
    # 1. the algorithm
    append(package / "losses" / "__init__.py", LOSS)
    create(package / "algos" / "toy.py", ALGORITHM)
    replace(package / "algos" / "__init__.py", '    "dpo": DPO,\n', '    "dpo": DPO,\n    "toy": Toy,\n')
    replace(package / "algos" / "__init__.py", "import DPO\n", "import DPO\nfrom imdb_rlhf.algos.toy import Toy\n")
    append(package / "config" / "algos.py", ALGORITHM_CONFIG)
    create(copy / "conf" / "algo" / "toy.yaml", ALGORITHM_YAML)
    replace(copy / "conf" / "experiment_algo" / "smoke.yaml", "\nunlikelihood: *", "\ntoy: *pairs\nunlikelihood: *")
    # 2. the reward
    create(package / "rewards" / "word_count.py", REWARD)
    append(package / "config" / "reward.py", REWARD_CONFIG)
    create(copy / "conf" / "reward" / "word_count.yaml", REWARD_YAML)
    # 3. the dataset
    create(package / "data" / "lines.py", DATASET)
    append(package / "config" / "data.py", DATASET_CONFIG)
    create(copy / "conf" / "data" / "lines.yaml", DATASET_YAML)
    # 4. a line each in the tree, and a figure
    for line in ("algos/toy.py", "rewards/word_count.py", "data/lines.py"):
        replace(tree, "imdb_rlhf/\n", f"imdb_rlhf/\n  {line}\n")
    create(copy / "sweeps" / "toy.yaml", SWEEP)
    reviews = copy / "reviews.txt"
    words = ["film", "plot", "dull", "fine", "cast", "great", "scene", "slow", "music", "odd", "long", "warm"]
    lines = (" ".join(words[(i * k + k) % len(words)] for k in range(1, 14)) for i in range(140))
    reviews.write_text("\n".join(f"number {i} {line}" for i, line in enumerate(lines)))
    return copy


CHOSEN = ["experiment=smoke", "reward=word_count", "data=lines", "paths.outputs=outputs", *TINY]


@pytest.fixture(scope="module")
def outputs(copy: Path) -> Path:
    """Everything that a sweep of the extended copy wrote."""
    ended = run(copy, "train.py", "-m", "sweep=toy", *CHOSEN, "data.file=reviews.txt")
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


# Several commands in one process: each start would take seconds.
SEVERAL = """
import json, sys
from dataclasses import asdict
from tests.command import train
print(json.dumps([asdict(train(*arguments)) for arguments in json.loads(sys.argv[1])]))
"""


def test_a_moved_file_is_the_same_and_what_is_not_there_is_refused(copy: Path, outputs: Path) -> None:
    shutil.copy(copy / "reviews.txt", copy / "moved.txt")
    cases = {
        "": ["weight=2", "data.file=moved.txt"],
        "failed: data.file=none.txt: no such file; give one with a review per line": ["data.file=none.txt"],
        "failed: data.file=reviews.txt has 140 lines, and 1023 are": ["data.file=reviews.txt", "data.sft_reviews=999"],
        "failed: reward=two_label is trained on labelled reviews, and ": ["data.file=reviews.txt", "reward=two_label"],
    }
    commands = [["algo=toy", *CHOSEN, *arguments] for arguments in cases.values()]
    ended = run(copy, "-c", SEVERAL, json.dumps(commands))
    assert ended.returncode == 0, ended.stderr
    moved, *refused = json.loads(ended.stdout)
    assert (moved["code"], moved["err"]) == (0, "") and "finished already, not run again" in moved["out"]
    for answer, message in zip(refused, list(cases)[1:], strict=True):
        assert (answer["code"], answer["err"].count("\n")) == (1, 1)
        assert answer["err"].startswith(message)


# Tests that read conf/ and the package, and those of them that look at the additions.
READERS = ["tests/test_conf.py", "tests/config", "tests/test_architecture.py"]
LOOKING = "toy or word_count or lines or owners or sizes or tree or circle or every_number or every_field or a_field"


def passes(copy: Path, *options: str) -> None:
    ended = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options)
    assert ended.returncode == 0, ended.stdout[-4000:]


def test_the_tests_that_look_at_them_pass_as_they_are(copy: Path) -> None:
    passes(copy, *READERS, "-k", LOOKING)


@pytest.mark.slow
def test_the_other_tests_pass_as_they_are(copy: Path) -> None:
    passes(copy, *READERS, "tests/test_readme.py")
