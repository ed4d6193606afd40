"""The workload: the same bytes each time, texts that a tokenizer reads back, pairs without contradictions."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import workload
from benchmarks.workload import SHAPES, Source, make, pairs

TOY = SHAPES["toy"]
SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(TOY, Source(None, None), tmp_path_factory.mktemp("store"))


def part(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def test_the_same_bytes_each_time(folder: Path, tmp_path: Path) -> None:
    again = make(TOY, Source(None, None), tmp_path)
    assert again.name == folder.name
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert Path("policy/model.safetensors") in files
    for file in files:
        assert (folder / file).read_bytes() == (again / file).read_bytes(), file


def test_one_that_is_there_is_not_made_again_and_half_a_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def write(shape: workload.Shape, source: Source, folder: Path) -> None:
        calls.append(folder)
        (folder / "part").write_text("")
        if len(calls) == 1:
            raise KeyboardInterrupt
        assert len(list(folder.iterdir())) == 1
        (folder / workload.READY).write_text("{}")

    monkeypatch.setattr(workload, "_write", write)
    with pytest.raises(KeyboardInterrupt):
        make(TOY, Source(None, None), tmp_path)
    assert make(TOY, Source(None, None), tmp_path) == make(TOY, Source(None, None), tmp_path)
    assert len(calls) == 2


def check_groups(folder: Path, count: int) -> None:
    groups = part(folder, "groups")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    assert len(groups) == count
    for group in groups:
        assert 2 <= len(group["prompt_ids"]) <= 8 and len(group["completions"]) == 4
        for completion in group["completions"]:
            assert len(completion["ids"]) == 48
            # what a trainer reads that takes texts and adds EOS
            text = group["prompt"] + completion["text"] + tokenizer.eos_token
            assert tokenizer(text)["input_ids"] == group["prompt_ids"] + completion["ids"]
            assert tokenizer(group["prompt"])["input_ids"] == group["prompt_ids"]


def test_texts_and_tokens_are_one(folder: Path) -> None:
    check_groups(folder, 64)
    assert all(2 <= len(prompt) <= 8 for prompt in part(folder, "prompts"))
    assert len(part(folder, "prompts")) == 512
    assert {len(row) for row in part(folder, "rows")} == {TOY.context}


def test_pairs_of_a_group_stand_together_and_contradict_nothing() -> None:
    found = pairs(64)
    assert [len(found[order]) for order in ("prefix", "shuffled")] == [64, 64]
    # 10 whole groups of 6 pairs, and 4 pairs of the next, which name all 4 of its completions
    assert [winner[0] for winner, _ in found["prefix"]] == [pair // 6 for pair in range(64)]
    assert len({tuple(side) for pair in found["prefix"] for side in pair}) == 44
    assert len({tuple(side) for pair in found["shuffled"] for side in pair}) > 90
    for order in found:
        for winner, loser in found[order]:
            assert winner[0] == loser[0] and winner[1] != loser[1]
    for group in range(10):
        # with an order behind them the winners win 3, 2, 1 and 0 times
        wins = [winner[1] for winner, _ in found["prefix"] if winner[0] == group]
        assert sorted(wins.count(which) for which in range(4)) == [0, 1, 2, 3]


def test_the_policy_is_the_reference_with_noise(folder: Path) -> None:
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("policy", "reference"))
    # tied weights once
    for (name, mine), theirs in zip(policy.named_parameters(), reference.parameters(), strict=True):
        noise = (mine - theirs).detach()
        if mine.ndim < 2:
            assert noise.abs().max() == 0, name
        else:
            assert float(noise.std()) == pytest.approx(0.02, rel=4 / math.sqrt(noise.numel())), name
    ids = torch.arange(20)[None]
    assert policy(input_ids=ids).logits.isfinite().all()


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with the real reviews is not there")
@pytest.mark.slow
def test_real_reviews_and_gpt2s_own_tokenizer(tmp_path: Path) -> None:
    shape = workload.Shape("wide", 1, 8, 2, workload.GPT2_VOCABULARY, 128, 4096)
    folder = make(shape, Source(SHARED / "imdb", SHARED / "gpt2-tokenizer"), tmp_path)
    check_groups(folder, 64)
    assert {len(row) for row in part(folder, "rows")} == {96}
    assert part(folder, "shape")["source"] == "real reviews"
