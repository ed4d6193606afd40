"""Runs and sweeps that are pushed to a stand-in for the Hub, and read back from it as anybody would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from imdb_rlhf.frontier.__main__ import main as frontier
from tests import command
from tests.command import run_of
from tests.experiments import STEPS, one_line, preferences, stages_made, well
from tests.stand_in import TOKEN, running

READ_BACK = """
import json, sys
from datasets import load_dataset
from huggingface_hub import HfApi, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

policy, tokenizer = AutoModelForCausalLM.from_pretrained("me/x"), AutoTokenizer.from_pretrained("me/x")
pairs = load_dataset("me/x-preferences", split="train")
groups = load_dataset("me/x-preferences", "groups", split="train")
info = HfApi().model_info("me/x")
print(json.dumps({
    "parameters": sum(p.numel() for p in policy.parameters()),
    "first": policy.lm_head.weight[3, :4].tolist(),
    "tokens": tokenizer("The film")["input_ids"],
    "pairs": pairs.to_dict(),
    "groups": len(groups),
    "datasets": info.card_data.datasets,
    "metrics": {each.metric_type: each.metric_value for each in info.card_data.eval_results},
    "space": snapshot_download("me/x", repo_type="space"),
}))
"""


def test_a_finished_run_is_pushed_and_read_back(first, tmp_path):
    """In processes of their own: HF_ENDPOINT is read when huggingface_hub is imported."""
    with running() as hub:
        environment = hub.environment(tmp_path / "home")
        push = [*first.values, *STEPS, "hub.push=me/x"]
        answer = well(command.run(*push, **environment))
        assert stages_made(answer) == {} and "finished already, not run again" in answer.out
        pushed = [line.split()[2:] for line in answer.out.splitlines() if line.startswith("hub ")]
        places = [("dataset", "datasets/me/x-preferences"), ("model", "me/x"), ("space", "spaces/me/x")]
        assert pushed == [[kind, f"{hub.url}/{place}"] for kind, place in places]
        assert TOKEN not in answer.out + answer.err and answer.err == ""
        assert all(repo.private for repo in hub.repos.values())
        # nothing of this machine is in any of it
        texts = [data for repo in hub.repos.values() for data in repo.files.values()]
        assert not any(TOKEN.encode() in data or str(first.outputs.parent).encode() in data for data in texts)

        reader = subprocess.run(
            [sys.executable, "-c", READ_BACK], env=os.environ | environment, capture_output=True, text=True, timeout=240
        )
        assert reader.returncode == 0, reader.stderr
        found = json.loads(reader.stdout)
        assert not hub.unknown
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(first.folder / "model")
    assert found["parameters"] == sum(p.numel() for p in policy.parameters())
    assert found["first"] == policy.lm_head.weight[3, :4].tolist()
    own = pd.read_parquet(preferences(first))
    assert len(own) and found["pairs"] == own.to_dict("list")
    assert found["groups"] == len(pd.read_parquet(preferences(first).with_name("groups.parquet")))
    summary = json.loads((first.folder / "summary.json").read_text())
    assert (found["metrics"]["reward"], found["metrics"]["kl"]) == (summary["reward"], summary["kl"])
    assert found["datasets"] == ["me/x-preferences"]
    assert "<title>" in (Path(found["space"]) / "index.html").read_text()


# --- one run, in this process


def test_a_run_that_is_refused_does_no_work(beside, hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    before = sorted(beside.outputs.rglob("*"))
    one_line(beside("seed=5", "hub.push=me/x"), 2, "refused: hub.push=me/x: there is no token")
    one_line(beside("seed=5", "hub.push=me/x", "hub.what=[report]", algo="best_of_n"), 2, "refused: hub.what=[report]")
    assert sorted(beside.outputs.rglob("*")) == before and not hub.asked


def test_a_plan_says_what_would_be_pushed(first, hub):
    answer = well(first("hub.push=me/x", "plan=true", *STEPS))
    assert "would be pushed: dataset me/x-preferences, model me/x, space me/x" in answer.out
    assert not hub.asked


def test_a_push_that_fails_leaves_the_run_finished(first, hub):
    hub.fail("POST", "/models/me/x/commit/", 500)
    push = ["hub.push=me/x", "hub.what=[model,preferences]"]
    line = one_line(first(*push), 1, "failed: the model me/x was not pushed: the Hub fails (500)")
    assert "(1 of 2 repositories were); the work is finished and kept: the same command pushes it" in line
    assert set(hub.repos["dataset", "me/x-preferences"].files) > {"preferences.parquet", "groups.parquet"}
    hub.failures.clear()
    answer = well(first(*push))
    assert "x-preferences (as it was)" in answer.out and "finished already" in answer.out
    assert "model.safetensors" in hub.repos["model", "me/x"].files and ("space", "me/x") not in hub.repos


def test_a_hub_that_is_down_when_the_run_starts(first, hub):
    hub.fail("GET", "/whoami", 503, times=1)
    answer = well(first("hub.push=me/x", "hub.what=[model]"))
    assert "out of reach now, tried again when there is something to push: the Hub fails (503)" in answer.out
    assert "model.safetensors" in hub.repos["model", "me/x"].files


def test_a_reward_model_is_a_classifier(beside, hub):
    well(beside("hub.push=me/rm", algo="reward_model"))
    files = hub.repos["model", "me/rm"].files
    card = files["README.md"].decode()
    assert "pipeline_tag: text-classification" in card and "- type: accuracy" in card
    assert "normalisation.json" in files
    assert {kind for kind, _ in hub.repos} == {"model", "dataset"}  # it is no point of a frontier


def test_preferences_that_were_given_are_not_pushed_again(beside, hub):
    well(beside(f"data.preferences={preferences(beside)}", "hub.push=me/given", "hub.what=[model,preferences]"))
    assert list(hub.repos) == [("model", "me/given")]
    assert "preferences.parquet" not in hub.repos["model", "me/given"].files["README.md"].decode()


# --- a sweep and a frontier


@pytest.mark.slow
def test_a_sweep_is_pushed_when_all_of_it_is_done(beside, tmp_path):
    sweep = ["-m", *beside.values, *STEPS, "algo=dpo", "beta=0.1,1", "hub.push=me/s", "baselines=false"]
    with running() as hub:
        answer = well(command.run(*sweep, **hub.environment(tmp_path / "home")))
        assert len([line for line in answer.out.splitlines() if line.startswith("hub ")]) == 4
        runs = sorted(path.name for path in (beside.outputs / "runs").glob("dpo-*") if path.is_dir())
        assert len(runs) == 2
        names = {("model", f"me/s-{run}") for run in runs} | {("dataset", "me/s-preferences"), ("space", "me/s")}
        assert set(hub.repos) == names
        page = hub.repos["space", "me/s"].files["index.html"].decode()
        (report,) = (beside.outputs / "sweeps").glob("beta-*/report.html")
        base = beside.outputs.parent
        assert page == report.read_text().replace(str(beside.outputs), "outputs").replace(f"{base}/own.py", "own.py")
        assert all(f"- me/s-{run}" in hub.repos["space", "me/s"].files["README.md"].decode() for run in runs)


def test_a_frontier_is_pushed_as_a_space(first, hub, tmp_path, capsys):
    drawn = [str(first.folder), "--to", str(tmp_path)]
    assert frontier([*drawn, "--push", "me/f", "--public", "--license", "mit"]) == 0
    assert f"{hub.url}/spaces/me/f" in capsys.readouterr().out
    repo = hub.repos["space", "me/f"]
    assert not repo.private and "license: mit" in repo.files["README.md"].decode()
    hub.fail("POST", "/commit/", 500)
    assert frontier([*drawn, "--push", "me/g"]) == 1
    assert capsys.readouterr().err == (
        "failed: the space me/g was not pushed: the Hub fails (500); it says: stand-in says 500; "
        "the frontier is drawn: the same command pushes it\n"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--push", "x"], "hub.push=x is no repository: it has no namespace"),
        (["--public"], "--public goes with --push NAMESPACE/NAME"),
        (["--push", "you/x"], "hub.push=you/x: the token may write to me, lab"),
    ],
)
def test_a_frontier_that_cannot_be_pushed_is_not_drawn(first, hub, tmp_path, capsys, words, line):
    assert frontier([str(first.folder), "--to", str(tmp_path / "f"), *words]) == 2
    assert capsys.readouterr().err.startswith(f"refused: {line}")
    assert not (tmp_path / "f").exists()


def test_the_jobs_of_a_sweep_share_one_hub():
    from imdb_rlhf.errors import ConfigError
    from imdb_rlhf.sweep.jobs import distinct

    with pytest.raises(ConfigError, match="hub is one for all jobs of a sweep"):
        distinct([run_of("hub.push=me/x"), run_of("hub.push=me/y")])
