"""A model that memory cannot hold is refused before any work; a lack on the way is one line."""

import numpy as np
import pytest
import torch

from imdb_rlhf.errors import RunError
from imdb_rlhf.training import memory
from imdb_rlhf.training.memory import check_memory, lack_of_memory_in_one_line, memory_of
from tests.command import train
from tests.experiments import TINY, one_line

CPU = torch.device("cpu")


def test_the_memory_of_this_machine():
    there = memory_of(CPU)
    assert there is not None and 10**8 < there < 10**14


def test_a_container_has_its_own_limit(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "LIMITS", (tmp_path / "none", limit))
    limit.write_text("max\n")
    whole = memory_of(CPU)
    assert whole is not None
    limit.write_text("123456789\n")
    assert whole is not None and memory_of(CPU) == 123456789 < whole


def test_what_a_training_keeps(monkeypatch):
    monkeypatch.setattr(memory, "memory_of", lambda device: 1600)
    check_memory(100, 4, CPU, "model=tiny")  # 4 bytes each of weight, gradient and two moments: 1,600
    with pytest.raises(RunError) as caught:
        check_memory(101, 4, CPU, "model=tiny")
    assert str(caught.value).startswith("model=tiny has 101 parameters: its weights, gradients and what the optimizer ")
    check_memory(400, 1, CPU, "model=tiny")
    monkeypatch.setattr(memory, "memory_of", lambda device: None)
    check_memory(10**15, 4, CPU, "model=tiny")


@pytest.mark.parametrize("sizes", [("width=100000", "heads=1"), ("layers=1000", "width=20480", "heads=1")])
def test_a_model_beyond_the_memory_is_refused_before_work(tmp_path, sizes):
    words = [f"model.{size}" for size in sizes]
    answer = train(*TINY, *words, f"paths.outputs={tmp_path}/new")
    message = one_line(answer, 1, "failed: model=smoke has ")
    assert " parameters: its weights, gradients and what the optimizer keeps are " in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("size", ["data.prompts.train", "data.sft_reviews", "data.labelled_reviews"])
def test_more_reviews_than_can_be_meant(size):
    one_line(train(*TINY, f"{size}=1000001"), 2, f"refused: {size}=1000001 is out of range; give a number of at least ")


def test_a_lack_of_memory_is_one_line():
    for make in (lambda: torch.empty(2**60), lambda: np.empty(2**58), lambda: bytearray(2**62)):
        with pytest.raises(RunError, match="^there is not enough memory"), lack_of_memory_in_one_line():
            make()
    with pytest.raises(RuntimeError, match="^other$"), lack_of_memory_in_one_line():
        raise RuntimeError("other")
    with pytest.raises(RunError, match="^mine: out of memory$"), lack_of_memory_in_one_line():
        raise RunError("mine: out of memory")
