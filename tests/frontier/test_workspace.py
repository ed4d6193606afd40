"""The workspace as code: its spec names the runs of the group, in our colours; saving it needs a key."""

import json
from pathlib import Path
from typing import Any

import pytest

from imdb_rlhf.errors import ConfigError
from imdb_rlhf.frontier import workspace
from imdb_rlhf.frontier.methods import styles


@pytest.fixture
def frontier(tmp_path: Path) -> dict[str, Any]:
    runs = []
    for name, method in (("a", "DPO"), ("b", "PPO"), ("c", "PPO")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        runs.append({"path": str(folder), "method": method})
        if name != "c":  # W&B does not know it
            (folder / "wandb_id").write_text(f"id-{name}\n")
    (tmp_path / "runs" / "b" / "config.yaml").write_text("logger:\n  group: beta-12ab\n")
    return {"methods": [{"name": "DPO"}, {"name": "PPO"}], "runs": runs}


def test_runs_have_their_methods_colours(frontier: dict[str, Any]) -> None:
    drawn = styles(["DPO", "PPO"])
    assert workspace.colours(frontier) == {"id-a": drawn["DPO"].colour, "id-b": drawn["PPO"].colour}


def test_the_group_is_what_the_runs_say(frontier: dict[str, Any], tmp_path: Path) -> None:
    assert workspace.group_of(frontier, tmp_path) == "beta-12ab"
    assert workspace.group_of(frontier | {"runs": frontier["runs"][:1]}, tmp_path / "seeds-1") == "seeds-1"


@pytest.mark.parametrize("text", ["imdb", "/imdb", "team/", "https://wandb.ai/team/imdb"])
def test_what_is_no_project_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="ENTITY/PROJECT"):
        workspace.parse(text)


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb-workspaces"):
        workspace.parse("team/imdb")


def test_the_spec(frontier: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert workspace.parse("team/imdb") == ("team", "imdb")
    said = workspace.write(frontier, tmp_path, "team", "imdb", "beta-12ab")
    assert said.startswith(f"{tmp_path / 'workspace.json'} (not saved to W&B")
    section = json.loads((tmp_path / "workspace.json").read_text())["section"]
    names = {part["name"]: part["panels"] for part in section["panelBankConfig"]["sections"]}
    assert list(names) == ["Frontier", "Runs", "Training"]
    kinds = [panel["viewType"] for panel in names["Frontier"]]
    assert kinds == ["Media Browser", "Weave", "Media Browser", "Weave"]
    assert names["Frontier"][0]["config"]["mediaKeys"] == ["reward_over_kl"]
    scatter = next(panel["config"] for panel in names["Runs"] if panel["viewType"] == "Scatter Plot")
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:kl", "summary:reward")
    (runset,) = section["runSets"]
    assert '"beta-12ab"' in json.dumps(runset["filters"]) and '"group"' in json.dumps(runset["filters"])
    assert section["customRunColors"] == workspace.colours(frontier)
