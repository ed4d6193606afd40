"""The peers in transformers itself: `generate`, and a plain training step."""

import torch
from transformers import AutoModelForCausalLM

from benchmarks.programs.program import Record, Setup, mean_logprob


def generate(setup: Setup, batch: int = 64, new: int = 48) -> Record:
    """Completions of the same prompts and lengths, from the whole distribution at temperature 1.

    Prompts are left-padded with a mask; no token ends a row. The weights are bf16: under autocast float32 weights would
    be cast again at every token.
    """

    def load(dtype: torch.dtype) -> AutoModelForCausalLM:
        return AutoModelForCausalLM.from_pretrained(setup.model("reference"), dtype=dtype).to(setup.device).eval()

    lm = load(torch.bfloat16 if setup.precision == "bf16" else torch.float32)
    lm.generation_config.eos_token_id = None  # rows go on to the end
    prompts = setup.data()["prompts"][:batch]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=setup.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=setup.device)
    drawn: list[list[list[int]]] = []
    torch.manual_seed(0)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}

    def once() -> None:
        with torch.inference_mode(), setup.autocast():
            rows = lm.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, **sampling)
        drawn.append(rows[:, longest:].tolist())

    seconds = setup.timed(once)
    assert all(len(ids) == new for batch in drawn for ids in batch), "a sampler stopped early"
    memory = setup.peak_bytes()
    facts = {"logprob": mean_logprob(load(torch.float32), prompts, drawn[-1])}
    return Record(seconds, float(len(prompts) * new), "tokens", peak_bytes=memory, facts=facts)


def sft(setup: Setup, batch: int = 64) -> Record:
    """Steps with transformers' own loss under autocast: forward, backward, gradient norm, fused AdamW."""
    rows = torch.tensor(setup.data()["rows"])
    lm = AutoModelForCausalLM.from_pretrained(setup.model("reference"), dtype=torch.float32).to(setup.device)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=True)
    losses: list[float] = []

    def once() -> None:
        at = (len(losses) * batch) % (len(rows) - batch + 1)
        ids = rows[at : at + batch].to(setup.device)
        optimizer.zero_grad()
        with setup.autocast():
            loss = lm(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))

    seconds = setup.timed(once)
    return Record(seconds, float(batch * (rows.shape[1] - 1)), "tokens", facts={"loss": losses[0]})
