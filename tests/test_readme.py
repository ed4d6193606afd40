"""README, CONTRIBUTING and docs/ are true: commands compose and run, links, files, functions and refusals exist."""

import itertools
import re
import shlex
from glob import glob
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from imdb_rlhf.artifacts.__main__ import main as artifacts
from imdb_rlhf.evaluation import __main__ as evaluation
from imdb_rlhf.frontier.__main__ import main as frontier
from tests import command
from tests.experiments import TINY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    file: file.read_text(encoding="utf-8")
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
}
COMMAND = re.compile(r"(?:python|torchrun [^`|\n]*?) ?train\.py([^`|\n]*)")
EVALUATION = re.compile(r"python -m imdb_rlhf\.evaluation ([^`|\n]*)")
# A whole run in about a second; its numbers mean nothing.


def without_refusals(text: str) -> str:
    """The text without its `console` blocks, which show commands that are refused."""
    return re.sub(r"^```console\n.*?^```", "", text, flags=re.S | re.M)


def overrides(shown: str) -> list[str]:
    """The words after `train.py` of a shown command line, without its comment and Hydra's options."""
    words = shlex.split(shown.partition("#")[0].replace("--cfg job", ""))
    return [word for word in words if word == "-m" or not (word.startswith(("--", "hydra")) or "interval(" in word)]


def commands() -> list[str]:
    """The overrides of every shown command that makes runs, each once."""
    commands = set()
    for text in map(without_refusals, PAGES.values()):
        commands |= {shlex.join(overrides(match[1])) for match in COMMAND.finditer(text)}
        for match in EVALUATION.finditer(text):
            commands.add(shlex.join(evaluation.overrides(shlex.split(match[1].partition("#")[0]))))
    return sorted(commands)


def jobs_of(words: list[str]) -> list[list[str]]:
    """The jobs of a sweep: `sweep=NAME` stands for the lines of its file, and a comma for several values."""
    names = [word.removeprefix("sweep=") for word in words if word.startswith("sweep=")]
    typed = {word.partition("=")[0]: word for word in words if not word.startswith("sweep=")}
    files = [OmegaConf.load(ROOT / "sweeps" / f"{name}.yaml") for name in names]
    lines = [line.split() for file in files for line in OmegaConf.select(file, "grids")]
    jobs = []
    for line in lines if names else [[]]:
        grid = {word.partition("=")[0]: word for word in line} | typed
        choices = [[f"{key}={value}" for value in word.partition("=")[2].split(",")] for key, word in grid.items()]
        jobs += [list(job) for job in itertools.product(*choices)]
    return jobs


def test_the_jobs_of_a_sweep() -> None:
    assert jobs_of(["algo=dpo", "beta=1,2"]) == [["algo=dpo", "beta=1"], ["algo=dpo", "beta=2"]]
    assert len(jobs_of(["sweep=frontier", "seed=3"])) == 21  # preferred_ft's two seeds are one now


def test_commands_are_found() -> None:
    assert {"algo=dpo beta=0.1", "algo=ppo target_kl=1", "-m sweep=frontier"} <= set(commands())


@pytest.mark.parametrize("shown", commands())
def test_command_composes(shown: str) -> None:
    words = shlex.split(shown)
    if "-m" in words:  # every job of the files in sweeps/ composes in test_conf.py
        jobs = jobs_of([word for word in words if word != "-m"])
        command.run_of(*jobs[0])
        command.run_of(*jobs[-1])
    else:
        command.run_of(*words)


def table_of_commands() -> list[str]:
    """The commands of README's table, in its order."""
    return re.findall(r"^\| `(python [^`]+)` \|", README, re.M)


def test_the_readmes_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder, after the command of `make demo`, with little data; two of them would take minutes even so."""
    monkeypatch.chdir(tmp_path)
    assert command.train("algo=dpo", "beta=0.1", *TINY).code == 0
    slow = ("-m sweep=frontier", "experiment=imdb_cpu data.path=DIR")
    shown = [line for line in table_of_commands() if not line.endswith(slow)]
    assert len(shown) == len(table_of_commands()) - len(slow) == 7
    for line in shown:
        _, *words = [match for word in shlex.split(line) for match in sorted(glob(word)) or [word]]
        if words[:2] == ["-m", "imdb_rlhf.frontier"]:
            assert frontier(words[2:]) == 0
        elif words[:2] == ["-m", "imdb_rlhf.evaluation"]:
            answer = command.train(*evaluation.overrides(words[2:]), *TINY)
            assert answer.code == 0, answer.err
        else:
            more = [*TINY, "reservoir.samples=16"] if "algo=best_of_n" in words else TINY
            several = "-m" in words
            answer = command.run(*words[1:], *more, cwd=tmp_path) if several else command.train(*words[1:], *more)
            assert answer.code == 0, f"{line}: {answer.err}"
    assert len(list(tmp_path.glob("outputs/runs/*/DONE"))) == 11
    assert artifacts(["list"]) == artifacts(["prune", "--yes"]) == 0


def refusals() -> list[tuple[str, str]]:
    """Commands that are shown with the line that refuses them."""
    blocks = [block for text in PAGES.values() for block in re.findall(r"^```console\n(.*?)^```", text, re.S | re.M)]
    return re.findall(r"^\$ python train\.py (.+)\n(refused: .+)$", "\n".join(blocks), re.M)


def test_there_are_refusals() -> None:
    assert len(refusals()) >= 4


@pytest.mark.parametrize(("arguments", "line"), refusals())
def test_a_shown_refusal_is_what_the_command_says(arguments: str, line: str) -> None:
    answer = command.train(*shlex.split(arguments))
    assert (answer.code, answer.out) == (2, "")
    shown, dots, _ = line.partition("...")  # a list that is cut
    assert answer.err.startswith(shown) and (dots or answer.err == f"{line}\n")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert "@@" not in PAGES[page]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = re.findall(r"(?:^|`)make ((?:[A-Z]+=\S+ )?[a-z-]+)", "\n".join(PAGES.values()), re.M)
    assert len(names) > 3
    assert not [name for name in names if not re.search(rf"^{name.split()[-1]}:", makefile, re.M)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(PAGES[target]), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_functions_exist(page: Path) -> None:
    """Those that are written as `folder/file` or `folder/file.py: Class.method`; a new kind's are called x or simpo."""
    folders = "imdb_rlhf|conf|sweeps|docs|tests|benchmarks|hydra_plugins"
    for name, symbol in re.findall(rf"`((?:{folders})/[\w./-]*)(?:: ([\w.]+))?`", PAGES[page]):
        if re.search(r"/(x|slic|test_slic|mine)\.", name):
            continue
        assert (ROOT / name).exists(), name
        code = (ROOT / name).read_text(encoding="utf-8") if symbol else ""
        for part in filter(None, symbol.split(".")):
            assert re.search(rf"^\s*(?:def|class) {part}\b|^{part}\b.* = ", code, re.M), f"{name}: {symbol}"
