"""A SLURM cluster of one machine, of Debian's packages slurm-wlm and munge: started for these tests, and stopped.

sacct needs a database; a script in its place asks the controller, which remembers the jobs of the last minutes.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.command import ROOT, Answer, ended, start

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldParameters=preempt_send_user_signal
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=20
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
SACCT = """\
#!/bin/sh
echo "JobID|State|NodeList"
squeue --noheader --states=all --array --format="%i|%T|%N"
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float = 180) -> Any:
    """Wait for what a condition returns, as soon as that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.2)
    raise AssertionError("it took too long")


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """What a command of SLURM's prints."""
        answer = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def states(self) -> dict[str, str]:
        """The state of each job."""
        lines = self.ask("squeue", "--noheader", "--states=all", "--array", "--format=%i|%T").split()
        return dict(line.split("|") for line in lines)

    def running(self) -> list[str]:
        return [job for job, state in self.states().items() if state == "RUNNING"]

    def submit(self, outputs: Path, *arguments: str) -> subprocess.Popen[str]:
        """`train.py -m ARGUMENTS` with jobs that SLURM runs."""
        launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=low"]
        common = ["experiment=smoke", "logger=none", "trainer.threads=1", f"paths.outputs={outputs}"]
        return start("-m", *common, *launcher, *arguments, cwd=ROOT, **self.environment)

    def whole(self, outputs: Path, *arguments: str) -> Answer:
        return ended(self.submit(outputs, *arguments), 600)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"it takes root and {' '.join(DAEMONS)}: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool", "bin"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, **ports))
    sacct = folder / "bin" / "sacct"
    sacct.write_text(SACCT)
    sacct.chmod(0o755)
    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    munge = {name: str(folder / "munge" / name) for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")}
    munge["key-file"] = str(key)
    commands = [["munged", "--force", *(f"--{option}={path}" for option, path in munge.items())]]
    commands += [[name, "-f", str(folder / "slurm.conf")] for name in ("slurmctld", "slurmd")]
    try:
        for command in commands:
            subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, timeout=60)
        made = Cluster(environment)
        until(lambda: "idle" in made.ask("sinfo", "--noheader"), 30)
        yield made
        subprocess.run(["scancel", "--user=root"], env=os.environ | environment, check=False, timeout=60)
        until(lambda: not made.running(), 60)
    finally:
        for file in (folder / "slurmd.pid", folder / "slurmctld.pid", folder / "munge" / "pid-file"):
            with suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)
