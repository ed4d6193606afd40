"""Two processes share a callback's evaluations, and leave one run."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

from tests.api.worlds import world

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path

from imdb_rlhf import FrontierCallback
from tests.api.test_callback import train
from tests.api.worlds import world

out = Path(sys.argv[1])
callback = FrontierCallback(world(), every=2, folder=out / "outputs" / "runs" / "both")
trainer = train(out, [callback], max_steps=2)
if trainer.is_world_process_zero():
    trainer.save_model(str(out / "model"))
assert len(callback.history) == 1
"""


@pytest.mark.slow
def test_two_processes_leave_the_run_of_one_policy(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    stored = pd.read_parquet(tmp_path / "outputs" / "runs" / "both" / "evaluations.parquet")
    rows = world().measure(AutoModelForCausalLM.from_pretrained(tmp_path / "model")).rows
    test = stored[stored["split"] == "test"]
    assert len(test) == len(rows) == 12
    assert test["kl"].tolist() == pytest.approx(rows["kl"].tolist(), abs=1e-5)
    assert test["reward"].tolist() == pytest.approx(rows["reward"].tolist())
