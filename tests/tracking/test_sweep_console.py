"""What a person sees of a sweep, as plain text and on a terminal."""

import io
from typing import Any

import pytest

from imdb_rlhf.tracking import sweep_console as module
from imdb_rlhf.tracking.sweep_console import Running, State, SweepConsole, outcome

STATE = State(22, 5, 1, 14, [Running("algo=dpo beta=1", 62.0, "sft  5/9 steps \x1b[2J[red]")], 725.0)
ROW = {"method": "dpo", "knob": "beta=1", "seed": 0, "reward": 0.91, "kl": 2.345, "kl_bound": False, "seconds": 61.0}


class Terminal(io.StringIO):
    """A stream in memory that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.0, "10 s"), (44.0, "40 s"), (89.0, "90 s"), (725.0, "12 min"), (5399.0, "90 min"), (7300.0, "2 h 02 min")],
)
def test_the_time_to_go_is_rough(seconds, text):
    state = State(3, 1, 0, 1, [], seconds)
    assert state.line() == f"1 of 3 done   0 running   1 left   about {text} to go"


def test_the_line_of_a_sweep():
    assert STATE.line() == "5 of 22 done   1 failed   1 running   14 left   about 12 min to go"
    assert State(2, 0, 0, 1, [], None).line() == "0 of 2 done   0 running   1 left"
    assert State(2, 0, 0, 1, [], 9.0, stopping=True).line().endswith("stopping after a checkpoint")


def test_a_drawing_is_no_job():
    drawing = Running("the frontier", 3.0, "is being drawn", is_job=False)
    assert State(3, 2, 1, 0, [drawing], None).line() == "2 of 3 done   1 failed   drawing the frontier"


def test_a_pipe_gets_a_line_a_minute(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "_now", lambda: now[0])
    out = io.StringIO()
    console = SweepConsole(out)
    with console.watching():
        for now[0] in (100.0, 159.0, 160.0, 161.0, 219.0, 220.0):
            console.update(STATE)
    lines = out.getvalue().splitlines()
    assert lines[::2] == [STATE.line()] * 2
    assert lines[1].startswith("  algo=dpo beta=1: sft  5/9 steps ?[2J[red]")


def test_a_terminal_sees_what_runs():
    out = Terminal()
    console = SweepConsole(out)
    with console.watching():
        console.update(STATE)
    text = out.getvalue()
    assert "5 of 22 done" in text and "algo=dpo beta=1" in text and "1 min 02 s" in text
    assert "\x1b[2J" not in text, "a job's log must not move the cursor"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "reward 0.910   KL 2.35   in 1 min 01 s"),
        ({"kl": -0.0001}, "reward 0.910   KL 0.00   in 1 min 01 s"),
        ({"kl_bound": True}, "reward 0.910   KL <= 2.35   in 1 min 01 s"),
        ({"kl": None, "reward": None}, "in 1 min 01 s"),
    ],
)
def test_what_a_job_came_to(change: dict[str, Any], text):
    assert outcome(ROW | {"kl": 2.3451} | change) == text


def test_the_table_and_the_failures():
    out = io.StringIO()
    console = SweepConsole(out)
    nothing = {"method": "sft", "knob": None, "seed": 1, "reward": None, "kl": None, "kl_bound": False, "seconds": None}
    console.table([ROW | {"state": "done"}, nothing | {"state": "failed"}])
    console.failures([("algo=sft", "killed by SIGKILL", "logs/2.log")])
    lines = [line.split() for line in out.getvalue().splitlines() if line.strip()]
    assert ["dpo", "beta=1", "0", "0.910", "2.35", "1", "min", "01", "s", "done"] in lines
    assert ["sft", "1", "failed"] in lines
    assert lines[-3:] == [["1", "failed:"], ["algo=sft:", "killed", "by", "SIGKILL"], ["logs/2.log"]]


@pytest.mark.parametrize("columns", ["60", "80", "160"])
def test_nothing_wraps_on_a_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    out = Terminal()
    console = SweepConsole(out)
    console.update(STATE)
    console._out.print(console._view())
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and "5 of 22 done" in lines[1] and "algo=dpo" in lines[2]
