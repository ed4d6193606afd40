"""The loop by hand, under crashes, signals and numbers that are not finite; micro-batches change nothing."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imdb_rlhf.algos.batches import share
from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.sft import SFT
from imdb_rlhf.config.algos import DPORun
from imdb_rlhf.config.machine import PolicyPrecision, Precision
from imdb_rlhf.config.optim import OptimConfig, Schedule
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.errors import RunError, Stopped
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.signals import stopping
from imdb_rlhf.training import checkpoint, loop
from imdb_rlhf.training.runtime import Runtime
from tests import tiny

Rows = list[dict[str, Any]]


adamw = partial(tiny.adamw, lr=0.003, warmup_steps=2, beta2=0.98, eps=1e-3, weight_decay=0.1)


def settings(optim: OptimConfig | None = None, **changes: Any) -> loop.Settings:
    return tiny.settings(optim=optim or tiny.rmsprop(), **changes)


# --- something to train


@dataclass
class Numbers:
    """A global batch of numbers."""

    notes: ClassVar[Mapping[str, float]] = {}
    values: np.ndarray

    @property
    def size(self) -> float:
        return float(len(self.values))

    def parts(self, rank: int, world: int, limit: int | None) -> list[Tensor]:
        return [torch.as_tensor(piece, dtype=torch.float32) for piece in share(self.values, rank, world, limit)]


class Weight(nn.Module):
    """x -> w x, behind dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.w, self.dropout = nn.Parameter(torch.tensor([2.0])), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w * x)


class Toy(loop.Plain):
    """The loss of x is w x; a rule may change it."""

    stage = "toy"

    def __init__(self, batches: list[list[float]], dropout: float = 0.0) -> None:
        self.module: nn.Module = Weight(dropout)
        self.data, self.steps = batches, len(batches)
        self.rule: Callable[[int, Tensor], Tensor] = lambda step, loss: loss
        self.step = 0

    @property
    def w(self) -> float:
        return float(cast(Weight, self.module).w.detach())

    def batches(self, first: int) -> Iterator[Numbers]:
        for step in range(first, self.steps):
            self.step = step
            yield Numbers(np.array(self.data[step]))

    def loss(self, module: nn.Module, part: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.rule(self.step, module(part).sum())
        return loss, {"train/sum": part.sum()}


def make_policy() -> Policy:
    return tiny.policy(tiny.gpt2(layers=1))


def make_sft(policy: Policy) -> SFT:
    random = np.random.default_rng(0)
    rows = [random.integers(1, 19, size=3 + i % 6) for i in range(12)]
    return SFT(policy, rows, tiny.sft(epochs=3.0))


def make_dpo(policy: Policy) -> DPO:
    groups = tiny.group_table(np.random.default_rng(0))
    pairs = Pairs(tiny.GROUP_PAIRS, tiny.GROUP_PAIRS[:, 0] // 4, {})
    return DPO(policy, groups, pairs, tiny.run(DPORun, policy=tiny.steps(steps=6)))


def train(
    algorithm: Any, options: loop.Settings, folder: Path, machine: Runtime | None = None, **hooks: Any
) -> tuple[Rows, Tensor]:
    """Logged rows without times, and all weights in one vector."""
    return tiny.train(algorithm, options, folder, machine, **hooks), tiny.weights(algorithm.module)


# --- by hand


def test_rows_are_means_over_the_steps_since_the_last(tmp_path: Path) -> None:
    toy = Toy([[1, 3], [1, 1], [5, 5]])
    rows, _ = train(toy, settings(log_every=2), tmp_path)
    # step 1: loss 2 x 2, gradient 2, mean square 0.01 x 4: w = 2 - 0.01 x 2 / 0.2 = 1.9
    # step 2: loss 1.9, gradient 1, mean square 0.99 x 0.04 + 0.01: w = 1.9 - 0.01 / sqrt(0.0496)
    w = 1.9 - 0.01 / 0.0496**0.5
    constant = {"stage": "toy", "train/lr": pytest.approx(0.01)}
    assert rows == [
        constant | {"step": 2, "train/loss": pytest.approx(2.95), "train/sum": 1.5, "train/grad_norm": 1.5},
        constant | {"step": 3, "train/loss": pytest.approx(5 * w), "train/sum": 5, "train/grad_norm": 5},
    ]


def test_learning_rates_are_those_of_the_schedule(tmp_path: Path) -> None:
    optim = tiny.rmsprop(lr=1.0, warmup_steps=1, schedule=Schedule.linear)
    rows, _ = train(Toy([[0.0]] * 4), settings(optim), tmp_path)
    assert [row["train/lr"] for row in rows] == pytest.approx([1 / 2, 1, 2 / 3, 1 / 3])


def test_the_rate_of_a_step_is_the_one_it_moves_by(tmp_path: Path) -> None:
    toy = Toy([[1.0]] * 2)
    seen: list[float] = []
    train(toy, settings(tiny.rmsprop(warmup_steps=1)), tmp_path, advance=lambda values: seen.append(toy.w))
    # 0.005 x 1 / 0.1, then 0.01 x 1 / sqrt(0.0199)
    assert seen == pytest.approx([1.95, 1.95 - 0.01 / 0.0199**0.5], rel=1e-5)


def test_gradients_are_clipped_and_the_norm_before_is_logged(tmp_path: Path) -> None:
    toy = Toy([[3.0, 1.0]])
    rows, _ = train(toy, settings(tiny.rmsprop(max_grad_norm=0.5)), tmp_path)
    assert rows[0]["train/grad_norm"] == pytest.approx(2)
    assert float(cast(Weight, toy.module).w.grad) == pytest.approx(0.5, rel=1e-4)  # type: ignore[arg-type]


def test_evaluation_comes_at_its_interval_and_at_the_end(tmp_path: Path) -> None:
    calls: list[int] = []

    def evaluate(step: int) -> dict[str, float]:
        calls.append(step)
        return {"eval/reward": float(step)}

    rows, _ = train(Toy([[1.0]] * 5), settings(log_every=3, evaluate_every=2), tmp_path, evaluate=evaluate)
    assert calls == [2, 4, 5]
    assert [(row["step"], row.get("eval/reward")) for row in rows] == [(2, 2.0), (3, None), (4, 4.0), (5, 5.0)]
    rows, _ = train(Toy([[1.0]] * 5), settings(log_every=5), tmp_path, evaluate=evaluate)
    assert calls == [2, 4, 5]  # not wanted, not called


@pytest.mark.parametrize(
    ("every", "total", "period", "wanted"),
    [
        (2, 5, 1, [2, 4, 5]),
        (4, 12, 4, [4, 8, 12]),
        (6, 14, 2, [6, 12, 14]),
        (6, 16, 4, [8, 12, 16]),  # 6, 12 and the last; 8 is the first end of a period past 6
        (10, 24, 4, [12, 20, 24]),
        (3, 12, 4, [4, 8, 12]),  # never closer than a period, though 4 to 8 holds one multiple and 8 to 12 two
        (100, 512, 64, [128, 256, 320, 448, 512]),  # 100, 200, 300, 400, 500
        (100, 12, 4, [12]),
    ],
)
def test_evaluations_come_between_periods(
    tmp_path: Path, every: int, total: int, period: int, wanted: list[int]
) -> None:
    calls: list[int] = []

    def evaluate(step: int) -> dict[str, float]:
        calls.append(step)
        return {}

    options = settings(evaluate_every=every, period=period, log_every=total)
    train(Toy([[1.0]] * total), options, tmp_path, evaluate=evaluate)
    assert calls == wanted


# --- what an algorithm is asked


@dataclass
class Episodes:
    """A batch with numbers of its own, which may leave its step out."""

    values: np.ndarray
    notes: Mapping[str, float]
    skipped: bool = False

    @property
    def size(self) -> float:
        return float(len(self.values))

    def parts(self, rank: int, world: int, limit: int | None) -> list[Tensor]:
        return [] if self.skipped else Numbers(self.values).parts(rank, world, limit)


class Stateful(Toy):
    """Step n notes n^2, unless it is skipped; its state holds the metrics of all steps."""

    def __init__(self, steps: int, skipped: tuple[int, ...] = ()) -> None:
        super().__init__([[1.0, 2.0]] * steps)
        self.skipped = skipped
        self.metrics: list[dict[str, float]] = []
        self.states = 0
        self.table = torch.zeros(2)

    def batches(self, first: int) -> Iterator[Any]:
        for step in range(first, self.steps):
            yield Episodes(np.array(self.data[step]), {"toy/square": float(step**2)}, step in self.skipped)

    def after(self, values: dict[str, float]) -> None:
        self.metrics.append(dict(values))
        self.table += 1 / 3

    def state(self) -> dict[str, Any]:
        self.states += 1
        return {"metrics": self.metrics, "table": self.table}

    def restore(self, state: dict[str, Any]) -> None:
        self.metrics, self.table = state["metrics"], state["table"]


def test_notes_are_averaged_over_steps_as_they_stand(tmp_path: Path) -> None:
    # whatever the size of the parts: neither summed over them nor divided by the size of the batch
    for limit in (None, 1):
        rows, _ = train(Stateful(5), settings(log_every=2, micro_batch=limit), tmp_path)
        assert [row["toy/square"] for row in rows] == [0.5, 6.5, 16.0]
        assert [row["train/sum"] for row in rows] == [1.5] * 3


def test_a_note_that_is_not_finite_changes_no_weight(tmp_path: Path) -> None:
    toy = Stateful(3)
    toy.batches = lambda first: iter([Episodes(np.ones(2), {"toy/square": float("nan")})])  # type: ignore[method-assign]
    with pytest.raises(RunError, match="toy: toy/square is nan at step 0"):
        train(toy, settings(), tmp_path)
    assert toy.w == 2.0


def test_a_batch_without_parts_changes_nothing_and_counts(tmp_path: Path) -> None:
    toy = Stateful(6, skipped=(1, 2, 5))
    seen: list[float] = []
    shown: list[dict[str, float]] = []

    def advance(values: dict[str, float]) -> None:
        seen.append(toy.w)
        shown.append(values)

    # a decayed weight and a momentum would move without a gradient too
    optim = adamw(lr=0.1, warmup_steps=0)
    rows, _ = train(toy, settings(optim, log_every=2), tmp_path, advance=advance)
    moved = [before != after for before, after in zip([2.0, *seen], seen, strict=False)]
    assert moved == [True, False, False, True, True, False]
    assert ["loss" in values for values in shown] == ["toy/square" in values for values in shown] == moved
    assert [bool(values) for values in toy.metrics] == moved
    # means over the steps that were taken, at the rates of their places
    assert [(row["step"], row["toy/square"]) for row in rows] == [(2, 0.0), (4, 9.0), (6, 16.0)]
    assert [row["train/lr"] for row in rows] == pytest.approx([0.1, 0.1 * 3 / 6, 0.1 * 2 / 6])
    assert [row["train/loss"] for row in rows] == pytest.approx(
        [values["train/loss"] for values in toy.metrics if values]
    )


def test_the_optimizer_does_not_see_a_skipped_step(tmp_path: Path) -> None:
    results = {}
    for name, toy in {"skipped": Stateful(4, skipped=(1, 2)), "none": Stateful(4)}.items():
        train(toy, settings(tiny.rmsprop(), checkpoint_every=4), tmp_path / name)
        saved = checkpoint.load(tmp_path / name)
        assert saved is not None and saved.step == 4
        results[name] = (toy.w, saved.optimizer["state"][0])
    # two steps of gradient 1.5: as far as a run of two
    two = Stateful(2)
    train(two, settings(tiny.rmsprop()), tmp_path / "two")
    w, state = results["skipped"]
    assert w == two.w != results["none"][0]
    assert float(state["step"]) == 2
    assert float(state["square_avg"]) == pytest.approx(0.01 * 1.5**2 * 1.99, rel=1e-5)


def test_there_is_no_row_for_steps_that_were_all_skipped(tmp_path: Path) -> None:
    toy = Stateful(6, skipped=(2, 3, 4))
    rows, _ = train(toy, settings(log_every=2), tmp_path)
    assert [(row["step"], row["toy/square"]) for row in rows] == [(2, 0.5), (6, 25.0)]
    # but an evaluation has one
    toy = Stateful(6, skipped=(2, 3, 4))
    wanted = settings(log_every=6, evaluate_every=2)
    rows, _ = train(toy, wanted, tmp_path, evaluate=lambda step: {"eval/reward": float(step)})
    assert [(row["step"], row.get("toy/square"), row["eval/reward"]) for row in rows] == [
        (2, 0.5, 2.0),
        (4, None, 4.0),
        (6, 25.0, 6.0),
    ]


def test_an_algorithm_is_told_of_every_step_and_its_state_is_kept(tmp_path: Path) -> None:
    straight = Stateful(7)
    rows, _ = train(straight, settings(checkpoint_every=3), tmp_path / "straight")
    assert straight.states == 3  # at 3, 6 and the end
    constant = {"train/loss", "train/sum", "train/grad_norm", "train/lr", "toy/square"}
    assert all(values.keys() == constant for values in straight.metrics)
    assert straight.metrics == [{key: row[key] for key in constant} for row in rows]

    folder = tmp_path / "stopped"
    with pytest.raises(tiny.Crash):
        train(Stateful(7), settings(checkpoint_every=3), folder, advance=tiny.crash_at(5))
    saved = checkpoint.load(folder)
    assert saved is not None
    # the state is that of the checkpoint's moment: after the third step
    assert saved.state["metrics"] == straight.metrics[:3]
    resumed = Stateful(7)
    train(resumed, settings(checkpoint_every=3), folder)
    assert resumed.metrics == straight.metrics
    assert resumed.table.equal(straight.table)


def test_an_algorithm_without_a_checkpoint_is_not_restored(tmp_path: Path) -> None:
    toy = Stateful(2)
    toy.restore = lambda state: pytest.fail("restored from nothing")  # type: ignore[method-assign]
    train(toy, settings(), tmp_path)
    assert toy.states == 0


# --- micro-batches


@pytest.mark.parametrize("make", [make_sft, make_dpo])
def test_micro_batches_change_nothing(make: Callable[[Policy], Any], tmp_path: Path) -> None:
    results = {}
    for limit in (None, 1, 2, 4, 100):
        algorithm = make(make_policy())
        rows, after = train(algorithm, settings(adamw(), micro_batch=limit), tmp_path)
        gradient = torch.cat([p.grad.flatten() for p in algorithm.module.parameters() if p.grad is not None])
        results[limit] = (rows, after, gradient)
    whole, after, gradient = results[None]
    assert len(whole) == 6
    assert whole[0]["train/loss"] != pytest.approx(whole[5]["train/loss"], abs=1e-2)  # it learns
    for limit in (1, 2, 4, 100):
        rows, other, other_gradient = results[limit]
        for row, expected in zip(rows, whole, strict=True):
            assert row.keys() == expected.keys()
            numbers = {key: value for key, value in expected.items() if key != "stage"}
            assert {key: row[key] for key in numbers} == pytest.approx(numbers, abs=1e-5, rel=1e-4)
        assert (other - after).abs().max() < 1e-5
        assert (other_gradient - gradient).norm() < 1e-4 * gradient.norm()


# --- numbers that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_changes_no_weight(value: float, tmp_path: Path) -> None:
    toy = Toy([[1.0]] * 5)
    toy.rule = lambda step, loss: loss * value if step == 2 else loss
    seen: list[float] = []
    with pytest.raises(RunError, match="toy: train/loss is .* at step 2"):
        train(toy, settings(), tmp_path, advance=lambda values: seen.append(toy.w))
    assert len(seen) == 2
    assert toy.w == seen[-1] != 2.0


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path) -> None:
    toy = Toy([[1.0]] * 3)
    toy.rule = lambda step, loss: (0 * loss).sqrt() if step == 1 else loss  # 0, and its gradient infinity x 0
    with pytest.raises(RunError, match="toy: train/grad_norm is nan at step 1"):
        train(toy, settings(tiny.rmsprop(max_grad_norm=1.0)), tmp_path)
    assert toy.w == pytest.approx(1.9)


def test_weights_that_are_not_finite_in_the_end_are_refused(tmp_path: Path) -> None:
    """No loss comes after the last step, to notice them."""
    toy = Toy([[1.0]])
    with pytest.raises(RunError, match="toy: .* is nan or infinite after the last step, .*; lower the learning rate"):
        train(toy, settings(tiny.rmsprop(lr=3e38)), tmp_path)


# --- going on


def make_toy(policy: Policy) -> Toy:
    return Toy([[1.0, 2.0, 3.0, 4.0]] * 6, dropout=0.5)


@pytest.mark.parametrize("precision", [Precision.float32, Precision.bf16])
@pytest.mark.parametrize("make", [make_toy, make_sft, make_dpo])
def test_a_run_goes_on_bit_for_bit(make: Callable[[Policy], Any], precision: Precision, tmp_path: Path) -> None:
    # a row every 2 steps and a checkpoint at 3: the sums of half a row are saved too
    wanted, runtime = settings(adamw(), checkpoint_every=3, log_every=2), tiny.runtime(precision)
    rows, straight = train(make(make_policy()), wanted, tmp_path / "straight", runtime)
    assert [row["step"] for row in rows] == [2, 4, 6]
    folder = tmp_path / "stopped"
    with pytest.raises(tiny.Crash):
        train(make(make_policy()), wanted, folder, tiny.runtime(precision), advance=tiny.crash_at(5))
    saved = checkpoint.load(folder)
    assert saved is not None and saved.step == 3
    # weights that were never touched would be noticed: the model starts from other ones
    algorithm = make(make_policy())
    with torch.no_grad():
        for parameter in algorithm.module.parameters():
            parameter += 1
    later, resumed = train(algorithm, wanted, folder, tiny.runtime(precision))
    assert later == rows[1:]
    assert resumed.equal(straight)


def test_dropout_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    torch.manual_seed(1)
    rows, _ = train(make_toy(make_policy()), settings(), tmp_path / "a")
    torch.manual_seed(2)
    again, _ = train(make_toy(make_policy()), settings(), tmp_path / "b")
    other, _ = train(make_toy(make_policy()), settings(seed=1), tmp_path / "c")
    assert again == rows
    assert other != rows
    assert len({row["train/grad_norm"] for row in rows}) > 1


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    wanted = settings(checkpoint_every=3)
    rows, straight = train(make_sft(make_policy()), wanted, tmp_path / "straight")
    folder = tmp_path / "stopped"
    with pytest.raises(tiny.Crash):
        train(make_sft(make_policy()), wanted, folder, advance=tiny.crash_at(5))
    path = folder / "checkpoint" / "weights.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again, after = train(make_sft(make_policy()), wanted, folder)
    assert again == rows  # from the beginning
    assert after.equal(straight)


# --- signals


def send_at(step: int, number: int, times: int = 1) -> Callable[[dict[str, float]], None]:
    count = 0

    def advance(values: dict[str, float]) -> None:
        nonlocal count
        count += 1
        if count == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return advance


@pytest.mark.parametrize("number", stopping())
def test_a_signal_stops_at_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in stopping()]
    rows, straight = train(make_sft(make_policy()), settings(adamw()), tmp_path / "straight")
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped, match="sft at step 2 of 6"):
        train(make_sft(make_policy()), settings(adamw()), folder, advance=send_at(2, number))
    assert [signal.getsignal(n) for n in stopping()] == before
    saved = checkpoint.load(folder)
    assert saved is not None and saved.step == 2
    later, resumed = train(make_sft(make_policy()), settings(adamw()), folder)
    assert later == rows[2:]
    assert resumed.equal(straight)


def test_a_signal_during_the_last_step_lets_it_finish(tmp_path: Path) -> None:
    rows, _ = train(Toy([[1.0]] * 3), settings(), tmp_path, advance=send_at(3, signal.SIGTERM))
    assert len(rows) == 3
    saved = checkpoint.load(tmp_path)  # what comes after the loop may still be cut short
    assert saved is not None and saved.step == 3


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(Toy([[1.0]] * 3), settings(), tmp_path, advance=send_at(2, signal.SIGINT, times=2))
    assert checkpoint.load(tmp_path) is None


# --- precision


def test_bf16_trains_float32_weights(tmp_path: Path) -> None:
    exact, _ = train(make_sft(make_policy()), settings(adamw()), tmp_path / "a")
    algorithm = make_sft(make_policy())
    rows, after = train(algorithm, settings(adamw()), tmp_path / "b", tiny.runtime(Precision.bf16))
    assert {p.dtype for p in algorithm.module.parameters()} == {torch.float32}
    losses, expected = ([row["train/loss"] for row in table] for table in (rows, exact))
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses[0] != expected[0]  # bf16 it was


@pytest.mark.parametrize("make", [make_sft, make_dpo])
@pytest.mark.parametrize(
    ("trainer", "wanted"),
    [(Precision.bf16, PolicyPrecision.float32), (Precision.float32, PolicyPrecision.bf16)],
)
def test_a_training_may_have_a_precision_of_its_own(
    make: Callable[[Policy], Any], trainer: Precision, wanted: PolicyPrecision, tmp_path: Path
) -> None:
    rows, after = train(make(make_policy()), settings(adamw()), tmp_path / "a", tiny.runtime(Precision(wanted)))
    machine = tiny.runtime(trainer)
    own = machine.at(wanted)
    same_rows, same = train(make(make_policy()), settings(adamw()), tmp_path / "b", own)
    assert same_rows == rows and torch.equal(same, after)
    other, _ = train(make(make_policy()), settings(adamw()), tmp_path / "c", machine)
    assert [row["train/loss"] for row in other] != [row["train/loss"] for row in rows]
    assert (machine.precision, own.precision, own.facts()["precision"]) == (trainer, wanted, wanted)
    assert machine.at(None) is machine and machine.at(PolicyPrecision(trainer)) is machine
