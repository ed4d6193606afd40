"""Our programs in this process: they compute what they are taken to."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from benchmarks.programs import dpo, generate, hf_generate, hf_sft, peak, ppo, record, sft
from benchmarks.workload import SHAPES, Source, make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(SHAPES["toy"], Source(None, None), tmp_path_factory.mktemp("store"))


def options(program: Any, folder: Path, *words: str) -> argparse.Namespace:
    common = ["--precision", "float32", "--threads", "1", "--repetitions", "2"]
    found = program.arguments().parse_args([str(folder), *common, *words])
    assert isinstance(found, argparse.Namespace)
    return found


@torch.no_grad()
def plain_loss(folder: Path, order: str) -> float:
    """DPO's loss from full logits, a completion at a time."""
    groups = record.read(folder, "groups")
    models = [AutoModelForCausalLM.from_pretrained(folder / name) for name in ("policy", "reference")]

    def score(lm: Any, side: list[int]) -> torch.Tensor:
        head, tail = groups[side[0]]["prompt_ids"], groups[side[0]]["completions"][side[1]]["ids"]
        logprobs = lm(input_ids=torch.tensor([head + tail])).logits[0, len(head) - 1 : -1].log_softmax(-1)
        return logprobs.gather(1, torch.tensor(tail)[:, None]).sum()

    margins = [
        [score(models[0], side) - score(models[1], side) for side in pair]
        for pair in record.read(folder, "pairs")[order]
    ]
    return float(torch.stack([-F.logsigmoid(0.1 * (winner - loser)) for winner, loser in margins]).mean())


@pytest.mark.parametrize("order", ["prefix", "shuffled"])
def test_the_first_loss_is_the_plain_one_whether_the_reference_is_stored_or_scored(folder: Path, order: str) -> None:
    expected = plain_loss(folder, order)
    assert abs(expected - 0.6931) > 1e-3  # the policy is not the reference
    once = dpo.measure(options(dpo, folder, "--pairs", order, "--reference", "once"))
    assert once.unit == "completions" and once.work == once.facts["distinct"]
    for how in ("stored", "step"):
        found = dpo.measure(options(dpo, folder, "--pairs", order, "--reference", how))
        assert found.facts["loss"] == pytest.approx(expected, abs=1e-5)
        assert (found.work, found.unit, len(found.seconds)) == (64.0, "pairs", 2)
        assert found.facts["distinct"] == once.facts["distinct"] == len(found.facts["rows"])
        # a row is a prompt of 2 to 8 tokens and 48 of a completion
        assert all(scored == 48 and 50 <= tokens <= 56 for tokens, scored in found.facts["rows"])


def test_samplers_draw_from_one_distribution(folder: Path) -> None:
    batch = ["--batch", "32"]
    mine = generate.measure(options(generate, folder, *batch))
    theirs = hf_generate.measure(options(hf_generate, folder, *batch))
    assert mine.work == theirs.work == 32 * 48
    (mean, error), (other, other_error) = mine.facts["logprob"], theirs.facts["logprob"]
    assert abs(mean - other) < 4 * (error**2 + other_error**2) ** 0.5


def test_sft_is_transformers_loss(folder: Path) -> None:
    mine, theirs = (program.measure(options(program, folder, "--batch", "8")) for program in (sft, hf_sft))
    assert mine.work == theirs.work == 8 * (SHAPES["toy"].context - 1)
    # other rows in another order, weights that know nothing: both are about log(vocabulary)
    assert mine.facts["loss"] == pytest.approx(theirs.facts["loss"], abs=0.05)


def test_a_ppo_iteration_is_all_its_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ppo.measure(options(ppo, folder, "--queries", "8", "--minibatch", "4", "--new", "6", "--epochs", "3"))
    assert (found.work, found.unit, len(found.seconds)) == (8.0, "episodes", 2)
    assert len(found.facts["queries"]) == 8


def test_the_peak_is_of_the_fastest_size(folder: Path) -> None:
    found = peak.measure(options(peak, folder, "--sizes", "16", "128"))
    assert found.work == 2 * found.facts["size"] ** 3
    rates = found.facts["rates"]
    assert rates[str(found.facts["size"])] == max(rates.values())


def test_a_record_is_found_among_what_libraries_print(capsys: pytest.CaptureFixture[str]) -> None:
    print("a library says so")
    given = argparse.Namespace(device="cpu", precision="bf16", threads=3)
    record.finish(given, record.Record([0.5, 0.25], 64.0, "pairs", facts={"loss": 0.7}))
    print("goodbye")
    found = record.parse(capsys.readouterr().out)
    assert found is not None
    assert (found.seconds, found.work, found.unit, found.precision, found.threads) == (
        [0.5, 0.25],
        64.0,
        "pairs",
        "bf16",
        3,
    )
    assert found.peak_bytes > 1e8 and found.facts == {"loss": 0.7}
    assert record.parse("nothing") is None


def test_laps_leave_the_first_period_out() -> None:
    from benchmarks.programs.ours import Laps

    laps = Laps("cpu", [1.0, 2.0, 4.0, 7.0, 11.0, 16.0])
    assert laps.seconds() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert laps.seconds(2) == [5.0, 9.0]


def test_a_timer_leaves_the_warm_up_out() -> None:
    calls: list[int] = []
    seconds = record.timed(lambda: calls.append(1), 3, "cpu")
    assert len(calls) == 4 and len(seconds) == 3 and all(s >= 0 for s in seconds)
