"""A frontier as a static Space."""

import json
from typing import Any

import pytest
from huggingface_hub import SpaceCard

from imdb_rlhf.frontier.draw import draw
from imdb_rlhf.publish.repository import Repository
from imdb_rlhf.publish.space import space

PLACE = Repository("space", "me/x")


@pytest.fixture(scope="module")
def drawn(first, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    draw([first.folder], folder)
    return folder


def test_the_page_is_the_report_without_places(first, drawn):
    files: dict[str, Any] = dict(space({"": drawn}, PLACE, models=["me/x"], datasets=[], licence="mit").files)
    kinds = ("json", "csv", "svg", "pdf", "png")
    assert set(files) == {"index.html", "README.md", *(f"frontier.{kind}" for kind in kinds)}
    report, base = (drawn / "report.html").read_text(), first.outputs.parent
    assert str(base) in report  # else the next line would say nothing
    shortened = report.replace(str(first.outputs), "outputs").replace(f"{base}/own.py", "own.py")
    assert files["index.html"].decode() == shortened
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        assert str(base).encode() not in data, name
    numbers, own = json.loads(files["frontier.json"]), json.loads((drawn / "frontier.json").read_text())
    assert numbers["points"] == own["points"] and numbers["runs"][0]["path"] == f"outputs/runs/{first.folder.name}"


def test_the_hub_reads_its_card(drawn):
    files: dict[str, Any] = dict(space({"": drawn}, PLACE, models=["me/x"], datasets=["me/p"], licence="mit").files)
    card = SpaceCard(files["README.md"].decode())
    data = card.data.to_dict()
    assert (data["sdk"], data["app_file"], data["title"], data["license"]) == ("static", "index.html", "x", "mit")
    assert data["models"] == ["me/x"] and data["datasets"] == ["me/p"] and "imdb_rlhf" in data["tags"]
    assert len(data["short_description"]) <= 60  # the Hub's limit
    assert "of 1 run\n" in card.text and "DPO" in card.text


def test_several_worlds_have_a_page_each(drawn):
    files: dict[str, Any] = dict(
        space({"k=1": drawn, "k=<2>": drawn}, PLACE, models=[], datasets=[], licence=None).files
    )
    assert {"k=1/index.html", "k=<2>/frontier.csv", "index.html"} <= set(files)
    index = files["index.html"].decode()
    assert '<a href="k=1/index.html">k=1</a>' in index and "k=&lt;2&gt;" in index and "<2>" not in index


def test_the_longest_place_is_shortened_first(drawn, tmp_path, monkeypatch):
    from imdb_rlhf.publish import space as module

    frontier = {"runs": [{"path": "/home/ann/out/runs/a"}, {"path": "/home/ann/out-2/runs/b"}]}
    monkeypatch.setenv("HOME", "/home/ann")
    shorten = module._without_places(frontier)
    assert shorten("see /home/ann/out/runs/a, /home/ann/out-2 and /home/ann/x") == "see outputs/runs/a, outputs and ~/x"
    assert shorten("/home/anna and /home/ann") == "/home/anna and ~"
