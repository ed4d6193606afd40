"""Distillation against the divergence from plain logits, token by token, and its samples' random numbers."""

import pytest
import torch
import torch.nn.functional as F

from imdb_rlhf.algos.distill import Distill
from imdb_rlhf.config.decoding import DistillConfig, DistillRun, Divergence
from imdb_rlhf.models import blocks
from imdb_rlhf.models.logprobs import Rows
from imdb_rlhf.models.next_token import next_token
from tests import tiny

PROMPTS = [[3], [4, 5, 6], [2, 1], [7]]
TEMPERATURE = 0.7


def distill(divergence: Divergence = Divergence.forward, **changes: int) -> Distill:
    steps = tiny.steps(**{"batch_size": 4, "steps": 3, **changes})
    generation = tiny.generation(temperature=TEMPERATURE)
    run = tiny.run(DistillRun, policy=steps, distill=DistillConfig(divergence), generation=generation)
    teacher = next_token(tiny.gpt2(1, spread=0.3).requires_grad_(False))
    policy = tiny.policy(tiny.gpt2(0, spread=0.3))
    return Distill(policy, teacher, PROMPTS, tiny.runtime(), run)


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("divergence", list(Divergence))
def test_the_loss_is_the_summed_divergence_per_completion(
    divergence: Divergence, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(blocks.CHUNK, "cpu", 40)  # two tokens at once
    algorithm = distill(divergence)
    batch = next(algorithm.batches(0))
    (rows,) = batch.parts(0, 1, None)
    total = torch.zeros(())
    for row in range(len(rows.ids)):
        ids = rows.ids[row : row + 1, : int(rows.lengths[row])]
        laws = [
            (lm(input_ids=ids).logits[0, int(rows.starts[row]) - 1 : -1] / TEMPERATURE).log_softmax(-1)
            for lm in (algorithm.teacher.models[0], algorithm.policy.lm)
        ]
        teacher, student = laws if divergence == Divergence.forward else laws[::-1]
        total = total + F.kl_div(student, teacher, reduction="sum", log_target=True)
    (total / 4).backward()
    gradient = tiny.gradients(algorithm.policy.lm)
    loss, metrics = tiny.run_batch(algorithm, batch, limit)
    assert loss == pytest.approx(float(total.detach()) / 4, rel=1e-4)
    assert (tiny.gradients(algorithm.policy.lm) - gradient).norm() < 1e-3 * gradient.norm()
    assert metrics["train/length"] == pytest.approx(float((rows.lengths - rows.starts).float().mean()))


def test_a_batch_is_a_function_of_the_step_however_it_is_shared_out() -> None:
    def rows_of(parts: list[Rows]) -> list[list[int]]:
        return [row[:length].tolist() for part in parts for row, length in zip(part.ids, part.lengths, strict=True)]

    algorithm = distill()
    first, second = list(algorithm.batches(0))[:2]
    whole = rows_of(first.parts(0, 1, None))
    assert whole == rows_of(first.parts(0, 1, 1)) == rows_of([*first.parts(0, 2, None), *first.parts(1, 2, None)])
    assert whole != rows_of(second.parts(0, 1, None))
    assert rows_of(next(algorithm.batches(1)).parts(0, 1, None)) == rows_of(second.parts(0, 1, None))


def test_whose_samples_it_learns_from() -> None:
    assert "4 prompts, 3 steps on samples of the guided policy" in distill().summary_line()
    assert "on samples of the student" in distill(Divergence.reverse).summary_line()
