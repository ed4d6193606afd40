"""The peer: transformers' `generate`, the same prompts and lengths, the whole distribution at temperature 1.

Prompts are left-padded with a mask; no token ends a row. The weights are in bf16; `--weights float32` leaves them as
they are under autocast, which casts each of them again at every token.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM

from benchmarks.programs.record import Record, autocast, begin, finish, mean_logprob, parser, peak_bytes, read, timed


def measure(options: argparse.Namespace) -> Record:
    """Time whole batches."""
    begin(options)
    low = options.weights == "bf16" and options.precision == "bf16"
    dtype = torch.bfloat16 if low else torch.float32
    lm = AutoModelForCausalLM.from_pretrained(options.folder / "reference", dtype=dtype).to(options.device).eval()
    prompts = read(options.folder, "prompts")[: options.batch]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=options.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=options.device)
    # rows go on to the end: no token ends them
    lm.generation_config.eos_token_id = None
    drawn: list[list[list[int]]] = []
    torch.manual_seed(0)

    def once() -> None:
        with torch.inference_mode(), autocast(options):
            out = lm.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=options.new,
                min_new_tokens=options.new,
                pad_token_id=0,
            )
        drawn.append(out[:, longest:].tolist())

    seconds = timed(once, options.repetitions, options.device)
    if any(len(tokens) != options.new for batch in drawn for tokens in batch):
        raise SystemExit("a completion is shorter than it has to be")
    memory = peak_bytes(options.device)
    plain = AutoModelForCausalLM.from_pretrained(options.folder / "reference", dtype=torch.float32).to(options.device)
    facts = {"logprob": mean_logprob(plain.eval(), prompts, drawn[-1])}
    return Record(seconds, float(len(prompts) * options.new), "tokens", memory, facts=facts)


def arguments() -> argparse.ArgumentParser:
    """The program's command line."""
    made = parser(__doc__)
    made.add_argument("--batch", type=int, default=64, help="prompts at once")
    made.add_argument("--new", type=int, default=48, help="tokens of each completion")
    made.add_argument("--weights", choices=["bf16", "float32"], default="bf16")
    return made


if __name__ == "__main__":
    given = arguments().parse_args()
    finish(given, measure(given))
