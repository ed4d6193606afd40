"""Every command that README and docs show composes; the quick ones run."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from imdb_rlhf import cli

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python train\.py([^`|\n]*)|(?:torchrun [^`|\n]*?)train\.py([^`|\n]*)")


def commands() -> list[str]:
    found = []
    for text in TEXTS:
        for match in COMMAND.finditer(text.read_text(encoding="utf-8")):
            arguments = (match[1] or match[2] or "").split("#")[0].strip()
            found.append(arguments.removesuffix("\\").strip())
    return sorted(set(found))


def test_there_are_commands() -> None:
    assert "algo=dpo beta=0.1" in commands()
    assert len(commands()) > 10


@pytest.mark.parametrize("arguments", commands())
def test_command_composes(arguments: str, tmp_path: Path) -> None:
    cli.register()
    overrides = [word for word in shlex.split(arguments) if word != "-m"]
    jobs: list[list[str]] = [[]]
    for word in overrides:
        key, _, values = word.partition("=")
        choices = values.split(",") if "-m" in shlex.split(arguments) else [values]
        jobs = [[*job, f"{key}={choice}"] for job in jobs for choice in choices]
    for job in jobs:
        with initialize_config_dir(str(cli.CONF), version_base="1.3"):
            cli.to_run(compose("config", job))


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
    from imdb_rlhf.artifacts import main

    assert main(["list", "--outputs", str(tmp_path)]) in (0, 1)
    assert capsys.readouterr()
