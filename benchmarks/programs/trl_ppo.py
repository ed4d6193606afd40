"""The peer: iterations of TRL 0.11.4's PPOTrainer, the last with the `generate` and `step` of 2023.

Weights are float32 under accelerate's bf16 autocast, which does not reach `generate`: sampling is put under autocast
here, or it would be float32 and slower.
"""

import argparse
import warnings

import torch
from transformers import PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

from benchmarks.programs.record import (
    Record,
    autocast,
    begin,
    finish,
    mean_logprob,
    parser,
    peak_bytes,
    read,
    score,
    timed,
)


def measure(options: argparse.Namespace) -> Record:
    """Time whole iterations: sampling, scoring, training."""
    begin(options)
    warnings.simplefilter("ignore")
    eos = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(options.folder / "reference" / "tokenizer.json"), eos_token=eos, pad_token=eos
    )
    torch.manual_seed(0)
    policy, reference = (
        AutoModelForCausalLMWithValueHead.from_pretrained(str(options.folder / "reference"), torch_dtype=torch.float32)
        for _ in range(2)
    )
    config = PPOConfig(
        learning_rate=1.41e-5,
        batch_size=options.queries,
        mini_batch_size=options.minibatch,
        ppo_epochs=options.epochs,
        init_kl_coef=0.2,
        log_with=None,
        accelerator_kwargs={
            "mixed_precision": "bf16" if options.precision == "bf16" else "no",
            "cpu": options.device == "cpu",
        },
    )
    trainer = PPOTrainer(config, policy, reference, tokenizer)
    prompts = read(options.folder, "prompts")[: options.queries]
    queries = [torch.tensor(prompt, device=options.device) for prompt in prompts]
    losses: list[float] = []
    drawn: list[list[list[int]]] = []
    length = {"min_length": -1, "top_k": 0, "top_p": 1.0, "do_sample": True, "max_new_tokens": options.new}

    def once() -> None:
        with torch.no_grad(), autocast(options):
            responses = trainer.generate(
                queries,
                batch_size=options.queries,
                return_prompt=False,
                pad_token_id=tokenizer.eos_token_id,
                **length,
            )
        drawn.append([response.tolist() for response in responses])
        rewards = score(prompts, drawn[-1])
        stats = trainer.step(queries, responses, [torch.tensor(reward) for reward in rewards])
        losses.append(float(stats["ppo/loss/total"]))

    seconds = timed(once, options.repetitions, options.device)
    memory = peak_bytes(options.device)
    facts = {"loss": losses[0], "logprob": mean_logprob(reference.pretrained_model, prompts, drawn[0])}
    return Record(seconds, float(len(queries)), "episodes", memory, facts=facts)


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--queries", type=int, default=64, help="episodes of an iteration")
    made.add_argument("--new", type=int, default=24, help="tokens of each response")
    made.add_argument("--epochs", type=int, default=4)
    made.add_argument("--minibatch", type=int, default=16)
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
