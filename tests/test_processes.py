"""Two processes compute what one does. This file is also the program that torchrun starts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.sft import SFT
from imdb_rlhf.config.algos import DPOConfig, DPOLoss, DPORun, PPORun
from imdb_rlhf.config.machine import Device, Precision, TrainerConfig, check_processes
from imdb_rlhf.config.optim import AdamWConfig, Schedule
from imdb_rlhf.config.ppo import PPOConfig, Scale, ValueNetwork, Whitening
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.config.stages import GenerationConfig, Order, SFTConfig
from imdb_rlhf.data.pairs import Pairs
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.training import loop
from imdb_rlhf.training.runtime import Runtime

ROOT = Path(__file__).parents[1]
OPTIM = AdamWConfig("adamw", 0.003, 1, Schedule.linear, 1.0, 0.9, 0.98, 1e-3, 0.1)


def make_runtime(processes: int) -> Runtime:
    return Runtime(TrainerConfig(Device.cpu, Precision.float32, processes, 1, None, 0, 1))


def tiny() -> Policy:
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    lm = GPT2LMHeadModel(GPT2Config(initializer_range=0.2, bos_token_id=0, eos_token_id=0, **sizes)).eval()
    return Policy(lm, cast(PreTrainedTokenizerBase, SimpleNamespace(eos_token_id=0)))


def algorithms(runtime: Runtime) -> list[Any]:
    """SFT, DPO and PPO on rows of very different lengths, so that the two processes have unequal shares of tokens."""
    random = np.random.default_rng(0)
    rows = [random.integers(1, 19, size=2 + (7 * i) % 12) for i in range(12)]
    sft = SFT(tiny(), rows, cast(SFTConfig, SimpleNamespace(seed=0, epochs=2.0, batch_size=6)))
    heads = [random.integers(1, 19, size=2 + i // 4).tolist() for i in range(12)]
    tails = [random.integers(1, 19, size=1 + i % 6).tolist() for i in range(12)]
    groups = pd.DataFrame({"prompt_ids": heads, "completion_ids": tails, "ref_logprob": -2.5 * np.arange(12)})
    pairs = np.array(
        [(best, worst) for first in (0, 4, 8) for best in range(first, first + 4) for worst in range(first, best)]
    )
    run = SimpleNamespace(
        seed=0,
        beta=0.1,
        generation=SimpleNamespace(temperature=1.0),
        policy=SimpleNamespace(batch_size=6, epochs=1.0, steps=4),
        pairs=SimpleNamespace(order=Order.prefix),
        dpo=DPOConfig(loss=DPOLoss.sigmoid, label_smoothing=0.0, average_logprobs=False),
    )
    dpo = DPO(tiny(), groups, Pairs(pairs, pairs[:, 0] // 4, {}), cast(DPORun, run))
    return [sft, dpo, ppo([head[:6] for head in heads], runtime)]


def ppo(prompts: list[list[int]], runtime: Runtime) -> PPO:
    """Two batches of 8 episodes, two steps each; the second is sampled from what the first has made."""
    values = {"preset": "test", "reward": RewardSource.ground_truth, "scale": Scale.reward, "normalize": False}
    sizes = {"episodes": 16, "batch_size": 8, "minibatch_size": 8, "epochs": 2, "rollout_batch_size": 2}
    loss = {"gamma": 1.0, "lam": 0.95, "policy_clip": 0.2, "value_clip": 0.2, "value_coefficient": 0.1}
    whitening = {"whiten_rewards": True, "advantage_whitening": Whitening.minibatch}
    kl = {"kl_coefficient": None, "initial_kl_coefficient": None, "horizon": None, "coefficient_range": 6.0}
    ends = {"min_kl_coefficient": 1e-4, "max_kl_coefficient": 100.0}
    rest = {"value": ValueNetwork.shared, "missing_eos_penalty": 1.0, "early_stop_kl": None, "optim": OPTIM}
    config = PPOConfig(**values, **sizes, **loss, **whitening, **kl, **ends, **rest)  # type: ignore[arg-type]
    run = SimpleNamespace(seed=0, target_kl=0.5, generation=GenerationConfig(8, None, 1.0), ppo=config)

    def score(heads: list[list[int]], tails: list[list[int]]) -> np.ndarray:
        return np.array([np.sin(sum(tail)) for tail in tails])

    reference = tiny().lm
    with torch.no_grad():
        reference.transformer.wte.weight *= 1.1
    return PPO(tiny(), reference, prompts, score, cast(PPORun, run), runtime, 0.3)


def work(processes: int, folder: Path) -> dict[str, Any]:
    """Train all; what every process has seen."""
    runtime = make_runtime(processes)
    result: dict[str, Any] = {
        "world": runtime.world,
        "broadcast": runtime.broadcast(runtime.rank + 7),
        "gather": runtime.gather([runtime.rank] * (runtime.rank + 1)),
    }
    for algorithm in algorithms(runtime):
        rows: list[dict[str, Any]] = []
        # pieces of 2: gradients are averaged over processes after the last one only
        settings = loop.Settings(0, OPTIM, 2, 0, 1)
        loop.train(algorithm, settings, runtime, folder / algorithm.stage, loop.Hooks(log=rows.append))
        weights = torch.cat([p.detach().flatten() for p in algorithm.module.parameters()])
        kept = [{key: value for key, value in row.items() if not key.startswith(("time/", "stage"))} for row in rows]
        result[algorithm.stage] = {"rows": kept, "weights": weights.tolist()}
    return result


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(free_port()), str(Path(__file__).resolve()), str(tmp_path)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    alone = work(1, tmp_path / "alone")

    assert [found["world"] for found in (alone, *both)] == [1, 2, 2]
    assert [found["broadcast"] for found in (alone, *both)] == [7, 7, 7]
    assert [found["gather"] for found in (alone, *both)] == [[0], [0, 1, 1], [0, 1, 1]]
    assert both[0] == both[1]  # the same rows and bit-equal weights on both
    for stage in ("sft", "dpo", "ppo"):
        expected, found = alone[stage], both[0][stage]
        assert len(expected["rows"]) == 4
        for mine, theirs in zip(found["rows"], expected["rows"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)
        assert np.abs(np.array(found["weights"]) - np.array(expected["weights"])).max() < 1e-5
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
        make_runtime(wanted)
    check_processes(int(running or 1))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    outcome = work(int(os.environ["WORLD_SIZE"]), place / "two")
    (place / f"{os.environ['RANK']}.json").write_text(json.dumps(outcome))
    torch.distributed.destroy_process_group()
