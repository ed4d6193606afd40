"""Signals that ask for a stop, before training begins and where they are to be ignored."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imdb_rlhf.signals import stopping
from tests.command import TRAIN

POSIX = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}


@pytest.fixture
def hangup():
    """Restores the handler of SIGHUP."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_every_signal_that_schedulers_send_is_known(hangup):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert set(stopping()) == POSIX


def test_nohup_is_respected(hangup):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert set(stopping()) == POSIX - {signal.SIGHUP}


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_in_a_stage_without_checkpoints_stops_too(number: signal.Signals, tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), "experiment=smoke", "data.sft_reviews=30000", f"paths.outputs={tmp_path}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(tmp_path.glob("artifacts/data/*.lock")):
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, out + err
    assert err.splitlines()[-1].startswith("stopped: ")
