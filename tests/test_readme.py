"""Every command that README and docs show composes; the quick ones run."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from imdb_rlhf import cli
from imdb_rlhf.evaluation import __main__ as policy

ROOT = Path(__file__).parents[1]
SWEEPS = ROOT / "sweeps"
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python train\.py([^`|\n]*)|(?:torchrun [^`|\n]*?)train\.py([^`|\n]*)")
POLICY = re.compile(r"python -m imdb_rlhf\.evaluation ([^`|\n]*)")


def commands() -> list[str]:
    found = []
    for text in TEXTS:
        for match in COMMAND.finditer(text.read_text(encoding="utf-8")):
            arguments = (match[1] or match[2] or "").split("#")[0].strip()
            found.append(arguments.removesuffix("\\").strip())
        for match in POLICY.finditer(text.read_text(encoding="utf-8")):
            found.append(shlex.join(policy.overrides(shlex.split(match[1].split("#")[0]))))
    return sorted(set(found))


def test_there_are_commands() -> None:
    assert "algo=dpo beta=0.1" in commands()
    assert len(commands()) > 10


@pytest.mark.parametrize("arguments", commands())
def test_command_composes(arguments: str) -> None:
    cli.register()
    words = shlex.split(arguments)
    jobs = jobs_of([word for word in words if word != "-m"]) if "-m" in words else [words]
    assert jobs
    for job in jobs:
        with initialize_config_dir(str(cli.CONF), version_base="1.3"):
            cli.to_run(compose("config", job))


def jobs_of(words: list[str]) -> list[list[str]]:
    """The jobs of a sweep, by hand: `sweep=NAME` stands for the lines of its file, and a comma for several values."""
    named = [word.removeprefix("sweep=") for word in words if word.startswith("sweep=")]
    mine = {word.partition("=")[0]: word for word in words if not word.startswith("sweep=")}
    lines = [
        line.split() for name in named for line in OmegaConf.select(OmegaConf.load(SWEEPS / f"{name}.yaml"), "grids")
    ]
    jobs = []
    for line in lines if named else [[]]:
        grid = {word.partition("=")[0]: word for word in line} | mine
        choices = [[f"{key}={value}" for value in word.partition("=")[2].split(",")] for key, word in grid.items()]
        jobs += [list(job) for job in itertools.product(*choices)]
    return jobs


def test_the_jobs_of_a_command() -> None:
    assert jobs_of(["algo=dpo", "beta=1,2"]) == [["algo=dpo", "beta=1"], ["algo=dpo", "beta=2"]]
    assert len(jobs_of(["sweep=frontier", "seed=3"])) == 21  # preferred_ft's two seeds are one now


def test_nothing_is_left_to_fill_in() -> None:
    for text in TEXTS:
        assert "@@" not in text.read_text(encoding="utf-8"), text.name


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for first, second in re.findall(
        r"^make ([a-z-]+)|`make ([a-z-]+)`", "\n".join(text.read_text(encoding="utf-8") for text in TEXTS), re.M
    ):
        target = first or second
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_links_lead_somewhere() -> None:
    for text in TEXTS:
        for link in re.findall(r"\]\(([^)#]+)\)", text.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (text.parent / link).exists(), f"{text.name}: {link}"


def test_quick_commands_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from imdb_rlhf.artifacts.__main__ import main

    assert main(["list", "--outputs", str(tmp_path)]) in (0, 1)
    assert capsys.readouterr()
