"""Two processes compute what one does. This file is also the program that torchrun starts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.sft import SFT
from imdb_rlhf.config.algos import DPORun, PPORun
from imdb_rlhf.config.machine import check_processes
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.training.runtime import Runtime
from tests import tiny
from tests.algos.online_methods import KINDS

ROOT = Path(__file__).parents[1]
OPTIM = tiny.adamw(lr=0.003, warmup_steps=1, beta2=0.98, eps=1e-3, weight_decay=0.1)


def policy() -> Policy:
    return tiny.policy(tiny.gpt2(layers=1))


def algorithms(runtime: Runtime) -> list[Any]:
    """SFT, DPO and online methods, on rows of such lengths that the processes have unequal shares of tokens."""
    random = np.random.default_rng(0)
    rows = [random.integers(1, 19, size=2 + (7 * i) % 12) for i in range(12)]
    sft = SFT(policy(), rows, tiny.sft(epochs=2.0))
    groups = tiny.group_table(random)
    pairs = Pairs(tiny.GROUP_PAIRS, tiny.GROUP_PAIRS[:, 0] // 4, {})
    dpo = DPO(policy(), groups, pairs, tiny.run(DPORun, policy=tiny.steps(steps=4)))
    prompts = [prompt_ids[:6] for prompt_ids in groups["prompt_ids"]]
    return [sft, dpo, ppo(prompts, runtime), *(online(name, prompts, runtime) for name in KINDS)]


def score(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> np.ndarray:
    return np.array([np.sin(sum(ids)) for ids in completion_ids])


def further() -> Any:
    """A reference that is not the policy."""
    reference = policy().lm
    with torch.no_grad():
        reference.transformer.wte.weight *= 1.1
    return reference


def online(name: str, prompts: list[list[int]], runtime: Runtime) -> Any:
    """Four steps, on four batches of 8 episodes (REINFORCE) or on two."""
    kind = KINDS[name]
    sizes: dict[str, Any] = {"episodes": 32, "batch_size": 8, "rollout_batch_size": 2, "optim": OPTIM}
    if name != "reinforce":
        sizes |= {"episodes": 16, "minibatch_size": 8, "epochs": 2, "k": 2}
    section = kind.section(**sizes, missing_eos_penalty=1.0)
    run = tiny.run(kind.run, beta=0.3, generation=tiny.generation(8), **{name: section})
    return kind.method(policy(), further(), prompts, score, run, runtime)


def ppo(prompts: list[list[int]], runtime: Runtime) -> PPO:
    """Two batches of 8 episodes, two steps each; the second is sampled after the first was trained on."""
    sizes = {"episodes": 16, "batch_size": 8, "minibatch_size": 8, "epochs": 2, "rollout_batch_size": 2}
    constants = {"gamma": 1.0, "lam": 0.95, "whiten_rewards": True, "missing_eos_penalty": 1.0}
    config = tiny.ppo(**sizes, **constants, optim=OPTIM)
    run = tiny.run(PPORun, target_kl=0.5, generation=tiny.generation(8), ppo=config)
    return PPO(policy(), further(), prompts, score, run, runtime, 0.3)


def work(processes: int, folder: Path) -> dict[str, Any]:
    """Train all; what every process has seen."""
    runtime = tiny.runtime(processes=processes)
    result: dict[str, Any] = {
        "world": runtime.world,
        "broadcast": runtime.broadcast(runtime.rank + 7),
        "gather": runtime.gather([runtime.rank] * (runtime.rank + 1)),
    }
    for algorithm in algorithms(runtime):
        # pieces of 2: gradients are averaged over processes after the last one only
        settings = tiny.settings(optim=OPTIM, micro_batch=2)
        rows = tiny.train(algorithm, settings, folder / algorithm.stage, runtime)
        numbers = [{key: value for key, value in row.items() if key != "stage"} for row in rows]
        result[algorithm.stage] = {"rows": numbers, "weights": tiny.weights(algorithm.module).tolist()}
    return result


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(free_port()), str(Path(__file__).resolve()), str(tmp_path)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    alone = work(1, tmp_path / "alone")

    assert [result["world"] for result in (alone, *both)] == [1, 2, 2]
    assert [result["broadcast"] for result in (alone, *both)] == [7, 7, 7]
    assert [result["gather"] for result in (alone, *both)] == [[0], [0, 1, 1], [0, 1, 1]]
    assert both[0] == both[1]  # the same rows and bit-equal weights on both
    for stage in ("sft", "dpo", "ppo", *KINDS):
        expected, result = alone[stage], both[0][stage]
        assert len(expected["rows"]) == 4
        for row, expected_row in zip(result["rows"], expected["rows"], strict=True):
            assert row == pytest.approx(expected_row, rel=1e-5, abs=1e-5)
        assert np.abs(np.array(result["weights"]) - np.array(expected["weights"])).max() < 1e-5
        losses = [row["train/loss"] for row in expected["rows"]]
        assert max(losses) - min(losses) > 1e-3  # it learns, so equal losses say something of the gradients


@pytest.mark.parametrize(("running", "wanted"), [("2", 1), ("1", 2), (None, 4)])
def test_another_number_of_processes_is_refused(
    running: str | None, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if running is not None:
        monkeypatch.setenv("WORLD_SIZE", running)
    message = f"trainer.processes={wanted}, but {running or 1} running"
    with pytest.raises(ConfigError, match=message):
        check_processes(wanted)
    with pytest.raises(ConfigError, match=message):
        tiny.runtime(processes=wanted)
    check_processes(int(running or 1))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    outcome = work(int(os.environ["WORLD_SIZE"]), place / "two")
    (place / f"{os.environ['RANK']}.json").write_text(json.dumps(outcome))
    torch.distributed.destroy_process_group()
