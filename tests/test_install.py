"""The wheel in an environment and a folder of its own: the commands of the repository, without the repository."""

import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import imdb_rlhf
from tests.experiments import TINY

ROOT = Path(__file__).parents[1]


def call(*words: str, cwd: Path, **environment: str) -> str:
    """The output of a command that succeeds."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    answer = subprocess.run(
        words, cwd=cwd, env=kept | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, text=True, timeout=240
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of an environment are that has the wheel; its dependencies are those of this one."""
    place = tmp_path_factory.mktemp("installed")
    source = place / "source"
    for name in ("imdb_rlhf", "hydra_plugins", "conf", "sweeps"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "MANIFEST.in", "pyproject.toml", "README.md", "LICENSE", "train.py"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "."]
    call(*build, str(source), cwd=place)
    venv.create(place / "env", with_pip=True)
    python = place / "env" / "bin" / "python"
    folder = call(str(python), "-c", "import site; print(site.getsitepackages()[0])", cwd=place).strip()
    # of the folders that a .pth file names, the .pth files are not read: the editable install is not seen
    (Path(folder) / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    (wheel,) = place.glob("*.whl")
    call(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel), cwd=place)
    return python.parent


def test_the_wheel_is_what_runs(binaries: Path, tmp_path: Path) -> None:
    code = "import imdb_rlhf; from imdb_rlhf.typed_run import CONF, SWEEPS; print(imdb_rlhf.__version__, CONF, SWEEPS)"
    version, conf, sweeps = call(str(binaries / "python"), "-c", code, cwd=tmp_path).split()
    inside = binaries.parent / "lib"
    assert version == imdb_rlhf.__version__
    assert all(Path(folder).is_relative_to(inside) and Path(folder).is_dir() for folder in (conf, sweeps))
    for name, folder in (("conf", conf), ("sweeps", sweeps)):
        shipped = {file.relative_to(folder) for file in Path(folder).rglob("*.yaml")}
        assert shipped == {file.relative_to(ROOT / name) for file in (ROOT / name).rglob("*.yaml")}


def test_a_run_and_a_sweep_in_another_folder(binaries: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine" / "experiment"
    own.mkdir(parents=True)
    (own / "short.yaml").write_text("# @package _global_\ndefaults: [smoke]\npolicy: {steps: 2}\n")
    tiny = [word for word in TINY if not word.startswith("experiment=")]
    script = str(binaries / "imdb-rlhf")
    call(script, "experiment=smoke", *tiny, cwd=tmp_path)
    two_runs = ["experiment=smoke", "beta=0.1,1", "baselines=false"]
    call(str(binaries / "python"), "-m", "imdb_rlhf", "-m", *two_runs, *tiny, cwd=tmp_path)
    (sweep,) = (tmp_path / "outputs" / "sweeps").glob("beta-????????")
    assert len(list((tmp_path / "outputs" / "runs").glob("*/DONE"))) == 2 and (sweep / "report.html").is_file()
    assert "dpo" in call(script, "--config-dir", "mine", "experiment=short", "plan=true", *tiny, cwd=tmp_path)
    two = ["experiment=smoke", "beta=1,2", "trainer.processes=2", "baselines=false", *tiny]
    call(script, "-m", *two, cwd=tmp_path)
    assert len(list((tmp_path / "outputs" / "runs").glob("*/DONE"))) == 4
