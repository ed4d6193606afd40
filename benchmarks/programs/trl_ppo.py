"""The peer: iterations of TRL 0.11.4's PPOTrainer, the last with the `generate` and `step` of 2023.

Weights are float32 under accelerate's bf16 autocast, which does not reach `generate`: sampling is put under autocast
here, or it would be float32 and slower.
"""

import warnings

import torch
from transformers import PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

from benchmarks.programs.program import Record, Setup, mean_logprob, parity_scores


def train(setup: Setup, queries: int = 64, new: int = 24, epochs: int = 4, minibatch: int = 16) -> Record:
    """Time whole iterations: sampling, scoring, training."""
    warnings.simplefilter("ignore")
    eos = "<|endoftext|>"
    file = str(setup.model("reference") / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, eos_token=eos, pad_token=eos)
    torch.manual_seed(0)
    policy, reference = (
        AutoModelForCausalLMWithValueHead.from_pretrained(str(setup.model("reference")), torch_dtype=torch.float32)
        for _ in range(2)
    )
    mixed = "bf16" if setup.precision == "bf16" else "no"
    config = PPOConfig(
        learning_rate=1.41e-5,
        batch_size=queries,
        mini_batch_size=minibatch,
        ppo_epochs=epochs,
        init_kl_coef=0.2,
        log_with=None,
        accelerator_kwargs={"mixed_precision": mixed, "cpu": setup.device == "cpu"},
    )
    trainer = PPOTrainer(config, policy, reference, tokenizer)
    prompts = setup.data()["prompts"][:queries]
    tensors = [torch.tensor(prompt, device=setup.device) for prompt in prompts]
    drawn: list[list[list[int]]] = []
    sampling = {"min_length": -1, "top_k": 0, "top_p": 1.0, "do_sample": True, "pad_token_id": tokenizer.eos_token_id}

    def once() -> None:
        with torch.no_grad(), setup.autocast():
            responses = trainer.generate(
                tensors, batch_size=queries, return_prompt=False, max_new_tokens=new, **sampling
            )
        drawn.append([response.tolist() for response in responses])
        trainer.step(tensors, responses, [torch.tensor(score) for score in parity_scores(drawn[-1])])

    seconds = setup.timed(once)
    memory = setup.peak_bytes()
    facts = {"logprob": mean_logprob(reference.pretrained_model, prompts, drawn[0])}
    return Record(seconds, float(len(prompts)), "episodes", peak_bytes=memory, facts=facts)
