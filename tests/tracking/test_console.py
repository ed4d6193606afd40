"""What a person sees, as plain text and on a terminal; times are never looked at, only whether lines come."""

import io
from typing import Any

import pytest

from imdb_rlhf.tracking import console as module
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.tracking.formats import duration


class Stream(io.TextIOWrapper):
    """A stream in memory, of any encoding, that may call itself a terminal."""

    def __init__(self, encoding: str = "utf-8", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.text.splitlines()]


class Clock:
    """Time that passes only when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def no_colour_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "_now", clock)
    return clock


SAMPLE: dict[str, Any] = {
    "prompt": "This movie was",
    "reference": " [red]bad[/b] :smile:\n\nreally",
    "reference_reward": 0.123,
    "policy": " great",
    "policy_reward": 0.987,
}
SUMMARY: dict[str, Any] = {
    "algo": "dpo",
    "knob": {"name": "beta", "value": 0.1},
    "seed": 0,
    "step": 500,
    "reward": 0.9123,
    "reward_ci": [0.88, 0.93],
    "reward_logit": 2.0,
    "kl": 4.21,
    "kl_ci": [4.0, 4.4],
    "kl_k1": 4.19,
    "prompts": 128,
    "samples_per_prompt": 4,
    "reference": {"reward": 0.51, "reward_ci": [0.47, 0.55]},
    "win_rate": 0.81,
    "seconds": 156.2,
    "config_hash": "ab12cd34",
}


def test_stage_lines() -> None:
    stream = Stream()
    console = Console(stream)
    console.stage("sft", reused=False, seconds=31.2, path="outputs/artifacts/sft/ab12")
    console.stage("sft", reused=True, seconds=31.2, path="outputs/artifacts/sft/ab12", note="other source")
    assert stream.lines == [
        "sft          made in 31.2 s       outputs/artifacts/sft/ab12",
        "sft          reused from outputs/artifacts/sft/ab12 (made in 31.2 s)  other source",
    ]


def test_a_long_path_stays_on_its_line() -> None:
    stream = Stream()
    path = "/a" * 150
    Console(stream).stage("sft", reused=False, seconds=1, path=path)
    assert len(stream.lines) == 1 and stream.lines[0].endswith(path)


def test_stdout_is_looked_up_when_written(capsys: pytest.CaptureFixture[str]) -> None:
    Console().note("hello [b]there[/b]")
    assert capsys.readouterr().out == "hello [b]there[/b]\n"


def test_quiet_leaves_only_warnings() -> None:
    stream = Stream()
    console = Console(stream, quiet=True)
    console.stage("sft", reused=False, seconds=1, path="p")
    console.note("note")
    console.samples([SAMPLE])
    console.result(SUMMARY, {"folder": "x"})
    with console.progress("sft", 2) as progress:
        progress.advance(2, loss=1.0)
    console.warn("disk is [almost] full")
    assert stream.lines == ["warning: disk is [almost] full"]


def test_plain_progress_is_sparse(clock: Clock) -> None:
    stream = Stream()
    seen = []
    with Console(stream).progress("policy", 50) as progress:
        for _ in range(50):
            before = len(stream.lines)
            clock.now += 1
            progress.advance(loss=0.5)
            if len(stream.lines) > before:
                seen.append(clock.now - 100)
    assert seen == [5, 20, 35]  # the last unit's line is the ending's
    assert stream.lines[0] == "policy       5/50 steps   1.0 steps/s   45.0 s left   loss 0.5"
    assert stream.lines[-1] == "policy       50/50 steps in 50.0 s   1.0 steps/s   loss 0.5"
    assert len(stream.lines) == 4


def test_a_short_stage_is_one_line(clock: Clock) -> None:
    stream = Stream()
    with Console(stream).progress("groups", 4, unit="batch") as progress:
        for _ in range(4):
            clock.now += 1
            progress.advance()
    assert stream.lines == ["groups       4/4 batches in 4.0 s   1.0 batches/s"]


def test_values_stay_until_replaced(clock: Clock) -> None:
    with Console(Stream()).progress("policy", 10) as progress:
        progress.advance(loss=0.7, reward=0.25)
        progress.advance(2, loss=0.6)
        progress.advance(0, kl=3.0)
        assert progress.latest() == "loss 0.6  reward 0.25  kl 3"
        assert progress.count() == "3/10 steps"


def test_a_resumed_stage_counts_only_its_own_speed(clock: Clock) -> None:
    stream = Stream()
    with Console(stream).progress("policy", 100, start=90) as progress:
        clock.now += 20
        progress.advance(5)
        assert (progress.count(), progress.rate(), progress.left()) == ("95/100 steps", "4.0 s/step", "20.0 s left")
        progress.advance(5)
    assert stream.lines[-1] == "policy       100/100 steps in 20.0 s (resumed at 90)   2.0 s/step"


def test_one_process_of_several_may_count_for_more_than_there_is(clock: Clock) -> None:
    stream = Stream()
    console = Console(stream)
    with console.progress("groups", 96, unit="completion") as progress:
        for _ in range(3):
            progress.advance(40)
        assert progress.count() == "96/96 completions"
    with console.progress("reference", 96, unit="sample") as progress:
        progress.advance(88)
    with console.progress("dpo", 1) as progress:
        progress.advance()
    counts = [line.split(maxsplit=1)[1].partition(" in ")[0] for line in stream.lines]
    assert counts == ["96/96 completions", "96/96 samples", "1/1 step"]


def test_the_time_left_runs_down_between_units(clock: Clock) -> None:
    with Console(Stream()).progress("sft", 11) as progress:
        clock.now += 10
        progress.advance()
        assert (progress.rate(), progress.left()) == ("10.0 s/step", "1 min 40 s left")
        clock.now += 4
        assert (progress.rate(), progress.left()) == ("10.0 s/step", "1 min 36 s left")
        clock.now += 1000
        assert progress.left() == "0.0 s left"


def test_a_terminal_breaks_lines_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream, path = Stream(terminal=True), "outputs/" + "a" * 60
    copied: list[str] = []
    console = Console(stream)
    console.copy_to(copied.append)
    console.note(f"0 duplicate and 0 empty reviews left out {path} in training")
    assert stream.lines == ["0 duplicate and 0 empty reviews left out", path, "in training"]
    assert copied == [f"0 duplicate and 0 empty reviews left out {path} in training"]


def test_nothing_to_do_is_no_division_by_zero(clock: Clock) -> None:
    stream = Stream()
    with Console(stream).progress("policy", 100, start=100):
        pass
    with Console(stream).progress("policy", 0) as progress:
        progress.advance(0, loss=1.0)
    endings = ["100/100 steps in 0.0 s (resumed at 100)", "0/0 steps in 0.0 s   loss 1"]
    assert stream.lines == [f"policy       {ending}" for ending in endings]


def test_an_exception_says_where_it_stopped(clock: Clock) -> None:
    stream = Stream()
    with pytest.raises(KeyboardInterrupt), Console(stream).progress("policy", 50) as progress:
        clock.now += 6
        progress.advance(12)
        raise KeyboardInterrupt
    assert stream.lines[-1] == "policy       stopped at 12/50 steps in 6.0 s   2.0 steps/s"


def test_a_terminal_has_a_live_bar_that_goes_away() -> None:
    stream = Stream(terminal=True)
    console = Console(stream)
    with console.progress("policy", 4) as progress:
        progress.advance(4, loss=0.5)
        console.warn("above [target]")
    assert "\x1b[?25l" in stream.text and "\x1b[?25h" in stream.text  # cursor hidden, shown again
    assert "━" in stream.text and "\x1b[2K" in stream.text  # drawn, erased
    assert "above [target]" in stream.text
    assert "4/4 steps in" in stream.lines[-1]


@pytest.mark.parametrize("name, value", [("FORCE_COLOR", "1"), ("TERM", "dumb")])
def test_no_cursor_is_moved_where_it_cannot(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    stream = Stream(terminal=name == "TERM")
    with Console(stream).progress("policy", 4) as progress:
        progress.advance(4)
    assert "\x1b[2K" not in stream.text and "\x1b[?25l" not in stream.text
    assert "4/4 steps in" in stream.text


def test_samples_are_literal_and_keep_their_newlines_visible() -> None:
    stream = Stream()
    Console(stream).samples([SAMPLE])
    assert max(map(len, stream.text.splitlines())) == 100
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in stream.lines if line and line[0] != " "}
    assert rows["prompt"] == "This movie was"
    assert rows["reference"] == "0.12 [red]bad[/b] :smile:⏎⏎really"
    assert rows["policy"] == "0.99 great"


def test_at_most_six_samples_wrapped_to_the_width() -> None:
    stream = Stream()
    long = SAMPLE | {"policy": " so good" * 40}
    Console(stream).samples([long] * 9)
    assert sum(line.startswith("policy") for line in stream.lines) == 6
    assert all(len(line) <= 100 for line in stream.lines)
    assert stream.text.count("so good") > 6 * 35  # wrapped, not cut (a few pairs are broken over two lines)


def test_sampled_bytes_cannot_move_the_cursor() -> None:
    stream = Stream()
    Console(stream).samples([SAMPLE | {"policy": " a\x1b[2Jb\x07c\u2028d\ud800e\tf\rg"}])
    assert "a?[2Jb?c?d?e fg" in stream.text
    assert "\x1b" not in stream.text


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_stream_without_unicode_gets_ascii(encoding: str, clock: Clock) -> None:
    stream = Stream(encoding)
    console = Console(stream)
    console.samples([SAMPLE | {"policy": " 漢字 … 😀"}])
    console.warn("⏎ 漢")
    console.result(SUMMARY, {"folder": "/tmp/漢"})
    with console.progress("policy", 1) as progress:
        progress.advance(reward=0.5)
    assert "\\n\\nreally" in stream.text and "/tmp/?" in stream.text


def test_a_terminal_without_unicode_gets_a_bar_all_the_same() -> None:
    stream = Stream("ascii", terminal=True)
    with Console(stream).progress("policy", 4) as progress:
        progress.advance(4, loss=0.5)
    assert "4/4 steps in" in stream.lines[-1]


def test_result_block() -> None:
    stream = Stream()
    Console(stream).result(
        SUMMARY, {"folder": "outputs/runs/x", "wandb": "wandb sync outputs/runs/x/wandb/offline-run-*"}
    )
    assert stream.lines == [
        "",
        "dpo beta=0.1, seed 0, step 500, 128 prompts x 4 samples",
        "  reward       0.912 [0.880, 0.930]   reference 0.510 [0.470, 0.550]",
        "  KL (nats)    4.210 [4.000, 4.400]   k1 4.190",
        "  win rate     0.810",
        "  time         2 min 36 s",
        "",
        "  folder       outputs/runs/x",
        "  wandb        wandb sync outputs/runs/x/wandb/offline-run-*",
    ]


def test_result_of_a_run_that_has_little() -> None:
    stream = Stream()
    summary = {
        "algo": "reward_model",
        "knob": None,
        "reward": None,
        "accuracy": 0.9,
        "distinct_2": None,
        "seconds": 3.0,
    }
    Console(stream).result(summary, {})
    assert stream.lines[1:4] == ["reward_model", "  accuracy     0.900 of pairs", "  time         3.0 s"]


def shown(summary: dict[str, Any]) -> list[str]:
    """The lines of a result, from its title on."""
    stream = Stream()
    Console(stream).result(summary, {})
    return stream.lines[1:-1]


def test_the_title_has_the_variant() -> None:
    assert shown(SUMMARY | {"variant": "ipo"})[0].startswith("dpo (ipo) beta=0.1, seed 0, step 500, 128 prompts x 4")
    assert shown(SUMMARY | {"variant": None})[0].startswith("dpo beta=0.1, seed 0")
    ppo = SUMMARY | {"algo": "ppo", "variant": "ground_truth, small", "knob": {"name": "target_kl", "value": 3.0}}
    assert shown(ppo)[0].startswith("ppo (ground_truth, small) target_kl=3.0, seed 0")


def test_best_of_n_has_a_bound_for_its_kl() -> None:
    best = SUMMARY | {"algo": "best_of_n", "kl": 1.0986, "kl_ci": [1.0986] * 2, "kl_k1": None, "kl_is": "upper bound"}
    assert shown(best)[2] == "  KL (nats)    at most 1.099"
    assert shown(best | {"kl": 0.0})[2] == "  KL (nats)    at most 0.000"


def test_win_rates_with_intervals() -> None:
    rates = {"win_rate": 0.75, "win_rate_ci": [0.7, 0.8], "win_rate_base": 0.9, "win_rate_base_ci": [0.85, 0.95]}
    lines = shown(SUMMARY | rates)
    assert lines[3:5] == ["  win rate     0.750 [0.700, 0.800]", "  against base 0.900 [0.850, 0.950]"]
    assert not any("base" in line for line in shown(SUMMARY))


REPORT = {
    "target_kl": 3.0,
    "kl_last_fifth": 2.904,
    "on_target": True,
    "at_floor": False,
    "at_ceiling": False,
    "first_kl_coefficient": 0.41234,
    "kl_coefficient": 0.1296,
}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "3, last fifth of training 2.904: met within 10 %; coefficient 0.412 to 0.13"),
        (
            {"kl_last_fifth": 9.5, "on_target": False},
            "3, last fifth of training 9.500: missed by more than 10 %; coefficient 0.412 to 0.13",
        ),
        (
            {"on_target": False, "at_floor": True, "kl_coefficient": 1e-4},
            "3, last fifth of training 2.904: missed by more than 10 %; coefficient 0.412 to 0.0001",
        ),
        (
            {"on_target": False, "at_ceiling": True, "kl_coefficient": 100.0},
            "3, last fifth of training 2.904: missed by more than 10 %; coefficient 0.412 to 100",
        ),
    ],
)
def test_whether_the_target_was_reached(changes: dict[str, Any], text: str) -> None:
    assert f"  target KL    {text}" in shown(SUMMARY | {"algo": "ppo", "ppo": REPORT | changes})


def test_a_fixed_coefficient_has_no_target() -> None:
    report = REPORT | {"target_kl": None, "on_target": None}
    assert not any("target KL" in line for line in shown(SUMMARY | {"algo": "ppo", "ppo": report}))


def test_the_account_of_a_reward_model() -> None:
    account = {
        "algo": "reward_model",
        "variant": "best_of_k",
        "accuracy": 0.9,
        "accuracy_ci": [0.87, 0.93],
        "test_pairs": 1501,
        "pearson": 0.8511,
        "spearman": 0.84,
        "calibration_error": 0.021,
    }
    assert shown(account) == [
        "reward_model (best_of_k)",
        "  accuracy     0.900 [0.870, 0.930] on 1501 pairs of test prompts",
        "  correlation  0.851 with the true log-odds, of ranks 0.840",
        "  calibration  0.021 mean gap of predicted and observed",
    ]
    undefined = dict.fromkeys(account, None) | {"algo": "reward_model", "test_pairs": 0}
    assert shown(undefined) == ["reward_model"]


def test_a_run_tells_of_the_reward_model_that_it_used() -> None:
    used = {"accuracy": 0.9, "accuracy_ci": [0.87, 0.93], "pearson": 0.85}
    assert "  reward model 0.900 [0.870, 0.930] of pairs" in shown(SUMMARY | {"algo": "ppo", "reward_model": used})
    unknown = {"accuracy": None, "accuracy_ci": None, "pearson": None}
    assert not any("reward model" in line for line in shown(SUMMARY | {"algo": "ppo", "reward_model": unknown}))


def test_a_reliability_table() -> None:
    stream = Stream()
    bins: list[dict[str, Any]] = [
        {"lower": 0.0, "upper": 0.1, "count": 12, "predicted": 0.0512, "observed": 1 / 12},
        {"lower": 0.1, "upper": 0.2, "count": 0, "predicted": None, "observed": None},
        {"lower": 0.9, "upper": 1.0, "count": 1501, "predicted": 0.9488, "observed": 1.0},
    ]
    Console(stream).reliability(bins)
    words = [line.split() for line in stream.lines if line and line[0] != "\u2500"]
    assert words == [
        ["p(first", "wins)", "pairs", "predicted", "observed"],
        ["0.0", "to", "0.1", "12", "0.051", "0.083"],
        ["0.1", "to", "0.2", "0", "-", "-"],
        ["0.9", "to", "1.0", "1501", "0.949", "1.000"],
    ]
    assert len({len(line) for line in stream.text.splitlines() if line and line[0] != "\u2500"}) == 1  # columns align
    quiet = Stream()
    Console(quiet, quiet=True).reliability(bins)
    assert quiet.text == ""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_reliability_table_without_unicode(encoding: str) -> None:
    stream = Stream(encoding)
    Console(stream).reliability([{"lower": 0.4, "upper": 0.5, "count": 3, "predicted": 0.45, "observed": 0.5}])
    assert "0.4 to 0.5" in stream.text and "0.450" in stream.text


@pytest.mark.parametrize(
    "seconds, text",
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.99, "1 min 00 s"), (125.2, "2 min 05 s"), (3750, "1 h 02 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_nothing_wraps_inside_a_bar(columns: int, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Stream(terminal=True)
    console = Console(stream)
    bar = module.Progress("reward_model", 1234567, "completion", 0, lambda _: None)
    clock.now += 4000
    bar.advance(654321, loss=0.123456, reward=0.98765, kl=12.3456, coefficient=0.1)
    console._out.print(console._bar(bar))
    assert len(stream.lines) == 2 and "654321/1234567" in stream.text
    assert ("/s" in stream.lines[0]) == (columns > 80)
