"""DPO by TRL on the project's own preferences, measured as the project's own runs are: it stands on their frontier.

    make demo
    python examples/trl_dpo.py outputs/runs/dpo-beta0.1-s0-*
    python -m imdb_rlhf.frontier outputs/runs

It needs `pip install "trl>=1.16,<2"` beside this package.
"""

import argparse
import tempfile
from pathlib import Path

import yaml
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from imdb_rlhf import FrontierCallback, load_world


def margins(pairs: Dataset) -> list[float]:
    """The log-odds by which the better completion of each pair wins."""
    scores = zip(pairs["score_chosen"], pairs["score_rejected"], strict=True)
    return [chosen - rejected for chosen, rejected in scores]


def main() -> None:
    """Train one policy per beta; each leaves a run beside the one that it is compared with."""
    parser = argparse.ArgumentParser(description="DPO by TRL, on the frontier of a finished run.")
    parser.add_argument("run", type=Path, help="a run of dpo, unlikelihood or preferred_ft: outputs/runs/NAME")
    parser.add_argument("--beta", type=float, nargs="+", default=[0.1], help="DPO's beta; a run per value")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="peak of a linear schedule")
    parser.add_argument("--batch-size", type=int, default=64, help="pairs per step")
    parser.add_argument("--steps", type=int, default=-1, help="optimizer steps; one pass over the pairs by default")
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    options = parser.parse_args()

    # 1. what the run was measured on: reference, tokenizer, prompts, reward, sampling
    world = load_world(options.run)
    if world.preferences is None:
        raise SystemExit(f"{options.run} sampled no pairs; name a run of dpo, unlikelihood or preferred_ft")
    pairs = load_dataset("parquet", data_files=str(world.preferences), split="train")
    # the file holds every pair that is no tie; the run itself trained on those of its own margin
    least = yaml.safe_load((world.run / "config.yaml").read_text())["pairs"]["min_margin"]
    kept = [at for at, margin in enumerate(margins(pairs)) if margin >= least]
    pairs = pairs.select(kept)
    print(f"{len(pairs)} pairs, as in {world.run.name}")

    for beta in options.beta:
        # 2. reward and exact KL in the trainer's log, and a run for the frontier
        name = f"trl-dpo-beta{beta:g}-s{options.seed}"
        folder = world.outputs / "runs" / name
        callback = FrontierCallback(world, every=options.every, folder=folder, knob="beta")
        # 3. TRL, from the run's own reference
        with tempfile.TemporaryDirectory() as scratch:
            arguments = DPOConfig(
                output_dir=scratch,
                beta=beta,
                learning_rate=options.learning_rate,
                lr_scheduler_type="linear",
                per_device_train_batch_size=options.batch_size,
                num_train_epochs=1,
                max_steps=options.steps,
                bf16=False,
                use_cpu=world.device.type == "cpu",
                logging_steps=10,
                save_strategy="no",
                report_to="none",
                seed=options.seed,
            )
            trainer = DPOTrainer(
                model=AutoModelForCausalLM.from_pretrained(world.reference),
                ref_model=AutoModelForCausalLM.from_pretrained(world.reference),
                args=arguments,
                train_dataset=pairs,
                processing_class=world.tokenizer,
                callbacks=[callback],
            )
            trainer.train()
        last = callback.history[-1]
        print(f"beta {beta:g}: reward {last['eval/reward']:.3f} at {last['eval/kl']:.2f} nats   {folder}")
    print(f"python -m imdb_rlhf.frontier {world.outputs / 'runs'}")


if __name__ == "__main__":
    main()
