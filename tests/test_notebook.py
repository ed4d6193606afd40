"""notebooks/frontier.ipynb runs from its first cell to its last, on an experiment of seconds."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.experiments import REWARD, TINY

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "frontier.ipynb"


def texts_of(cell: Any) -> str:
    """What a cell shows as text."""
    outputs = [output.get("data", {}).get("text/plain", output.get("text", "")) for output in cell.outputs]
    return "\n".join(outputs)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.py").write_text(REWARD)
    settings = [*TINY, "reward=own", f"reward.function={tmp_path / 'my.py'}:score"]
    monkeypatch.setenv("IMDB_RLHF_SETTINGS", " ".join(settings))
    monkeypatch.setenv("IMDB_RLHF_BETAS", "0.1,1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    pictures = [cell for cell in cells if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    assert len(pictures) == 2
    shown = "\n".join(map(texts_of, cells))
    for text in ("optimum, upper bound", "KL (nats)", "kl_atom", "reference_reward"):
        assert text in shown, text
    assert len(list((tmp_path / "outputs" / "runs").glob("dpo-*/DONE"))) == 2


def test_it_is_committed_without_outputs() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells)
