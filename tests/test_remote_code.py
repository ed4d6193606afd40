"""A model folder's own code is never run, and nothing asks whether it should be."""

import json
import shutil
from pathlib import Path

import pytest

from imdb_rlhf.models.heads import make_reward_head
from imdb_rlhf.models.policy import load, parameters_of, save
from tests.experiments import one_line


def brings_code(folder: Path, source: Path, kind: str) -> Path:
    """A model of an unknown type, with code that leaves a file when it is imported."""
    shutil.copytree(source, folder)
    (folder / "its_code.py").write_text(
        f"open({str(folder / 'was_run')!r}, 'w')\nclass A: ...\nclass B: ...\nclass C: ...\n"
    )
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "its_code.A", "AutoModelForCausalLM": "its_code.B"}
    names |= {"AutoModelForSequenceClassification": "its_code.B"}
    config |= {"auto_map": names, "model_type": kind}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": [None, "its_code.C"]}, "tokenizer_class": "C"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_head_on_a_known_type_asks_nothing_and_keeps_nothing_of_it(beside, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("it asked"))
    folder = brings_code(tmp_path / "model", beside.folder / "model", "gpt2")
    shutil.copy(beside.folder / "model" / "tokenizer_config.json", folder)  # one with code is refused
    make_reward_head(folder, "eager", 0, 1)
    parameters_of(folder)
    save(load(folder, "eager"), tmp_path / "saved", "", 1.0)
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not (folder / "was_run").exists()


@pytest.mark.parametrize("kind", ["never_heard_of", "gpt2"])
@pytest.mark.parametrize("key", ["sft.path", "own_model.path", "reward.path"])
def test_its_code_is_not_run(beside, tmp_path, monkeypatch, key, kind):
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("it asked"))
    folder = brings_code(tmp_path / "model", beside.folder / "model", kind)
    more = {"reward.path": ["reward=siebert", "reward.revision=null"]}.get(key, [])
    algo = {"own_model.path": "own_model"}.get(key, "dpo")
    values = [value for value in beside.values if not (key == "reward.path" and value.startswith("reward"))]
    again = type(beside)(beside.outputs, values, beside.answer, beside.folder)
    answer = again(*more, f"{key}={folder}", algo=algo)
    if answer.code:  # a known type may be read by transformers' own code
        one_line(answer, 1, f"failed: {key}={folder}")
    assert kind == "gpt2" or answer.code == 1
    assert not (folder / "was_run").exists()
