"""The results of TRL 0.11.4's PPO, the last release line with the `trl.PPOTrainer` of 2023, on small random inputs.

    python tests/trl_ppo_vectors.py                writes tests/trl_ppo_vectors.json
    python tests/trl_ppo_vectors.py --check        computes it again and compares

makes a virtual environment of its own (`--venv FOLDER` keeps it; otherwise it is a temporary one) with REQUIREMENTS, of
October 2024 as TRL 0.11.4 is, on Python 3.10 to 3.13, and runs TRL's own methods in it: `compute_rewards`,
`compute_advantages`, `loss` and `record_step_stats` of a `PPOTrainer` that has a configuration and a KL controller but
no model, and its `AdaptiveKLController`. Nothing of TRL is written out again here. On Linux PyPI's torch brings CUDA,
some 3 GB; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu brings one for the CPU.

Tables are (episodes, tokens): a completion's tokens first, then padding, which holds numbers that must not matter.
They are double precision: inputs have 4 decimals, so that what is read is what was used, outputs 9 digits.

How TRL masks: its trainer's tables cover prompt and completion, the mask is 1 at the completion's tokens. Values and
rewards are masked before GAE, the score is added at the last token in the mask, mean and variance are of what is in the
mask, the variance with Bessel's correction; advantages are whitened over the whole batch, losses are token means.
But whitening of rewards writes mean - mean / std into the masked places. GAE runs backwards, so what stands after a
completion reaches its tokens and what stands before does not; a tokenizer that pads on the left puts nothing after.
Hence `padding`, the side on which TRL is given it; what comes back is moved to the left again.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REQUIREMENTS = [
    "trl==0.11.4",
    "transformers==4.45.2",
    "torch==2.5.1",
    "numpy==2.1.3",
    "accelerate==1.0.1",
    "datasets==3.0.1",
    "pandas==2.2.3",
    "pyarrow==18.0.0",
    "tyro==0.9.2",
]
VECTORS = Path(__file__).with_suffix(".json")
TOKENS = 6

SETTINGS: list[dict[str, Any]] = [
    # as TRL's configuration has it by default
    {
        "name": "defaults",
        "padding": "right",
        "lengths": [6, 1, 4, 3],
        "whiten_rewards": False,
        "kl_coefficient": 0.2,
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        "target": 6.0,
        "horizon": 10000.0,
    },
    {
        "name": "whitened_rewards",
        "padding": "left",
        "lengths": [3, 5, 6, 1],
        "whiten_rewards": True,
        "kl_coefficient": 0.35,
        "gamma": 0.97,
        "lam": 0.9,
        "cliprange": 0.1,
        "cliprange_value": 0.3,
        "vf_coef": 0.5,
        "target": 0.25,
        "horizon": 100.0,
    },
    # the numbers before, in the padding
    {
        "name": "whitened_rewards_and_padding",
        "padding": "right",
        "lengths": [5, 2, 6, 1],
        "whiten_rewards": True,
        "kl_coefficient": 0.05,
        "gamma": 0.95,
        "lam": 0.9,
        "cliprange": 0.15,
        "cliprange_value": 0.15,
        "vf_coef": 1.0,
        "target": 1.0,
        "horizon": 1024.0,
    },
]
CONTROLLER: dict[str, Any] = {
    "kl_coefficient": 0.2,
    "target": 6.0,
    "episodes": 256,
    "horizon": 10000.0,
    # far below, inside the clip on both sides, on target, negative, far above
    "kls": [0.5, 5.4, 6.6, 6.0, -0.3, 30.0, 7.1],
}


def inputs(seed: int, lengths: list[int]) -> dict[str, Any]:
    """Random tables; the policy has moved far enough for both clips to bind somewhere."""
    draw = random.Random(seed)

    def table(mean: float, std: float, near: list[list[float]] | None = None) -> list[list[float]]:
        return [
            [round(draw.gauss(mean, std) + (near[row][t] if near else 0.0), 4) for t in range(TOKENS)]
            for row in range(len(lengths))
        ]

    logprobs, values = table(-2.5, 0.8), table(0.2, 0.7)
    return {
        "mask": [[int(t < length) for t in range(TOKENS)] for length in lengths],
        "scores": [round(draw.gauss(0.5, 1.5), 4) for _ in lengths],
        "logprobs": logprobs,
        "ref_logprobs": table(-0.2, 0.5, near=logprobs),
        "values": values,
        "new_logprobs": table(0.0, 0.25, near=logprobs),
        "new_values": table(0.0, 0.35, near=values),
    }


def outputs(case: dict[str, Any]) -> dict[str, Any]:
    """TRL's results on a case."""
    import torch
    from trl.trainer.ppo_trainer import AdaptiveKLController, PPOConfig, PPOTrainer

    shared = ("whiten_rewards", "gamma", "lam", "cliprange", "cliprange_value", "vf_coef")
    trainer = PPOTrainer.__new__(PPOTrainer)
    trainer.config = PPOConfig(**{key: case[key] for key in shared})
    trainer.kl_ctl = AdaptiveKLController(case["kl_coefficient"], case["target"], case["horizon"])

    def moved(table: torch.Tensor, sign: int) -> torch.Tensor:
        if case["padding"] == "right":
            return table
        shifts = [sign * (TOKENS - length) for length in case["lengths"]]
        return torch.stack([row.roll(shift) for row, shift in zip(table, shifts, strict=True)])

    def read(name: str) -> torch.Tensor:
        return torch.tensor(case[name], dtype=torch.float64)

    mask = moved(torch.tensor(case["mask"]), 1)
    scores = read("scores")
    logprobs, ref_logprobs = moved(read("logprobs"), 1), moved(read("ref_logprobs"), 1)
    new_logprobs, new_values = read("new_logprobs").requires_grad_(), read("new_values").requires_grad_()

    rewards, penalties, kls = trainer.compute_rewards(scores, logprobs, ref_logprobs, mask)
    values, advantages, returns = trainer.compute_advantages(moved(read("values"), 1), rewards, mask)
    policy_loss, value_loss, stats = trainer.loss(
        old_logprobs=logprobs,
        values=values,
        logits=torch.zeros(*mask.shape, 2, dtype=torch.float64),  # for an entropy that is only reported
        vpreds=moved(new_values, 1),
        logprobs=moved(new_logprobs, 1),
        mask=mask,
        advantages=advantages,
        returns=returns,
    )
    (policy_loss + value_loss).backward()
    step = trainer.record_step_stats(
        kl_coef=trainer.kl_ctl.value,
        masks=mask,
        kls=kls,
        scores=scores,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        non_score_reward=penalties,
        queries=mask,
        responses=mask,
        train_stats={key: stats[key][None] for key in ("val/error", "returns/var")},
    )
    trainer.kl_ctl.update(step["objective/kl"].item(), len(scores))
    tables = {"rewards": rewards, "advantages": advantages, "returns": returns}
    return {
        **{name: moved(table.detach(), -1).tolist() for name, table in tables.items()},
        "policy_loss": stats["loss/policy"].item(),
        "value_loss": stats["loss/value"].item(),
        "total_loss": stats["loss/total"].item(),
        "clip_fraction": stats["policy/clipfrac"].item(),
        "value_clip_fraction": stats["val/clipfrac"].item(),
        "new_logprobs_gradient": new_logprobs.grad.tolist(),
        "new_values_gradient": new_values.grad.tolist(),
        "kl": step["objective/kl"].item(),
        "next_kl_coefficient": float(trainer.kl_ctl.value),
    }


def controlled(setting: dict[str, Any]) -> list[float]:
    """The coefficient after each batch."""
    from trl.trainer.ppo_trainer import AdaptiveKLController

    controller, coefficients = (
        AdaptiveKLController(setting["kl_coefficient"], setting["target"], setting["horizon"]),
        [],
    )
    for kl in setting["kls"]:
        controller.update(kl, setting["episodes"])
        coefficients.append(float(controller.value))
    return coefficients


def vectors() -> dict[str, Any]:
    """The file's content."""
    import numpy
    import torch
    import transformers
    import trl

    cases = [setting | inputs(seed, setting["lengths"]) for seed, setting in enumerate(SETTINGS)]
    return {
        "versions": {
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__.partition("+")[0],
            "numpy": numpy.__version__,
        },
        "cases": [case | {"trl": outputs(case)} for case in cases],
        "controller": CONTROLLER | {"trl": controlled(CONTROLLER)},
    }


def short(value: Any) -> Any:
    """The same with 9 significant digits."""
    if isinstance(value, dict):
        return {key: short(part) for key, part in value.items()}
    if isinstance(value, list):
        return [short(part) for part in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def text(value: Any, depth: int = 0) -> str:
    """JSON with a key per line."""
    pad = " " * depth
    if isinstance(value, dict):
        lines = ",\n".join(f"{pad} {json.dumps(key)}: {text(part, depth + 1)}" for key, part in value.items())
        return f"{{\n{lines}\n{pad}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[" + ", ".join(text(part, depth) for part in value) + "]"
    return json.dumps(value, separators=(",", ":"))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and words with their paths."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{path}/{key}")
    else:
        yield path, value


def differences(old: Any, new: Any) -> list[str]:
    """A line per value that differs by more than a part in a million."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return [
        f"{path}: {before.get(path)} before, {after.get(path)} now"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
        and not (
            isinstance(before.get(path), float)
            and isinstance(after.get(path), float)
            and abs(before[path] - after[path]) <= 1e-6 * max(1e-3, abs(before[path]))
        )
    ]


def computed(folder: Path) -> dict[str, Any]:
    """The file's content, from an environment in `folder`."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    # isolated: nothing of the environment that this was started from
    command = [python, "-I", "-W", "ignore", __file__, "--inside"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--venv", type=Path, help="folder of the environment, made if not there; default: temporary")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(short(vectors())))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        new = computed((arguments.venv or Path(temporary) / "venv").absolute())
    if not arguments.check:
        VECTORS.write_text(text(new) + "\n", encoding="utf-8")
        print(f"{VECTORS}: {VECTORS.stat().st_size} bytes")
        return 0
    lines = differences(json.loads(VECTORS.read_text(encoding="utf-8")), new)
    print("\n".join(lines) or f"{VECTORS}: the same")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
