"""The two-label reward: its crops, and its loss against the cross-entropy of the crops one by one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from imdb_rlhf.algos.two_label import LabelledBatch, TwoLabel, crop, position_weights
from imdb_rlhf.config.reward import Crop, Positions
from imdb_rlhf.models.label_head import LabelHead
from tests import tiny

PROMPTS = tiny.prompts()  # 2 to 4 tokens


def make_head(dropout: float = 0.0, lm_weight: float = 0.0) -> LabelHead:
    """A head whose linear map is far from 0."""
    model = tiny.gpt2_scorer(0, labels=2, layers=1, spread=0.3, dropout=dropout)
    torch.manual_seed(2)
    torch.nn.init.normal_(model.score.weight)
    return LabelHead(model, lm_weight)


def logits_of(head: LabelHead, row: list[int]) -> torch.Tensor:
    """The head's linear map of a text's last state, the text alone and without padding."""
    model = head.model
    return model.score(model.transformer(input_ids=torch.tensor([row])).last_hidden_state[0, -1])


# --- crops


def test_a_crop_is_as_long_as_a_prompt_with_its_completion() -> None:
    review = list(range(100))
    openings = [crop(review, Crop.opening, PROMPTS, 5, 0, "held_out", index) for index in range(300)]
    assert {len(piece) for piece in openings} == {7, 8, 9}
    assert all(piece == review[: len(piece)] for piece in openings)
    pieces = [crop(review, Crop.anywhere, PROMPTS, 5, 0, "crop", 0, index) for index in range(2000)]
    assert {len(piece) for piece in pieces} == {7, 8, 9}
    assert all(piece == list(range(piece[0], piece[0] + len(piece))) for piece in pieces)
    starts = {piece[0] for piece in pieces}
    assert min(starts) == 0 and max(piece[-1] for piece in pieces) == 99  # both ends are reached
    assert len(starts) > 85


def test_a_short_review_is_its_own_crop() -> None:
    for where in Crop:
        assert crop([1, 2, 3], where, PROMPTS, 5, 0, "crop", 0, 0) == [1, 2, 3]


def test_mixed_crops_are_openings_half_of_the_time() -> None:
    pieces = [crop(list(range(1000)), Crop.mixed, PROMPTS, 5, 0, "crop", 0, index) for index in range(2000)]
    openings = sum(piece[0] == 0 for piece in pieces)
    assert 910 <= openings <= 1092  # half, and one chance start at 0 in 1000: 1001 ± 4 standard deviations of 22.4
    starts = [piece[0] for piece in pieces if piece[0]]
    assert min(starts) < 20 and max(starts) > 970
    assert {len(piece) for piece in pieces} == {7, 8, 9}


def test_a_crop_is_a_function_of_seed_and_names() -> None:
    review = list(range(1000))
    first = crop(review, Crop.anywhere, PROMPTS, 5, 0, "crop", 0, 7)
    assert crop(review, Crop.anywhere, PROMPTS, 5, 0, "crop", 0, 7) == first
    others = [crop(review, Crop.anywhere, PROMPTS, 5, *names) for names in ((1, "crop", 0, 7), (0, "crop", 1, 7))]
    assert first not in others


# --- the algorithm


def test_weights_are_on_the_last_token_or_on_the_second_half() -> None:
    lengths = torch.tensor([5, 4, 1])
    assert position_weights(lengths, 6, Positions.last).tolist() == [
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 0],
    ]
    third = pytest.approx(1 / 3)
    assert position_weights(lengths, 6, Positions.second_half).tolist() == [
        [0, 0, third, third, third, 0],
        [0, 0, 0.5, 0.5, 0, 0],
        [1, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("positions", list(Positions))
def test_the_loss_is_the_cross_entropy_of_the_crops(positions: Positions) -> None:
    head = make_head()
    reviews = [[1 + (i + j) % 17 for j in range(4 + 3 * i)] for i in range(5)]
    algorithm = TwoLabel(head, reviews, [0, 1, 1, 0, 1], tiny.two_label(positions=positions), PROMPTS, 3, None)
    batch = next(algorithm.batches(0))
    assert len({len(row) for row in batch.rows}) > 1
    with torch.no_grad():
        expected, right = 0.0, 0
        for row, label in zip(batch.rows, batch.labels, strict=True):
            first = len(row) - 1 if positions == Positions.last else len(row) // 2
            cuts = torch.stack([logits_of(head, row[: end + 1]) for end in range(first, len(row))])
            expected += float(F.cross_entropy(cuts, torch.full((len(cuts),), int(label))))  # the mean over the cuts
            right += int(cuts[-1].argmax()) == label
        for limit in (None, 2):
            parts = [algorithm.loss(algorithm.module, part) for part in batch.parts(0, 1, limit)]
            assert sum(float(loss) for loss, _ in parts) == pytest.approx(expected, rel=1e-5)
            assert sum(float(metrics["train/accuracy"]) for _, metrics in parts) == right
    assert batch.size == 3


def test_the_next_token_loss_is_the_mean_over_a_crops_tokens() -> None:
    head = make_head(lm_weight=0.7)
    rows, labels = [[3, 4, 5, 6, 7, 8], [9, 2, 0], [5]], np.array([0, 1, 1])
    losses: dict[float, float] = {}
    gradients: dict[float, torch.Tensor] = {}
    for weight in (0.0, 0.7):
        head.lm_weight = weight
        algorithm = TwoLabel(head, rows, labels.tolist(), tiny.two_label(lm_weight=weight), PROMPTS, 3, None)
        head.zero_grad()
        loss, _ = algorithm.loss(head, LabelledBatch(rows, labels, 3.0).parts(0, 1, None)[0])
        loss.backward()
        losses[weight] = float(loss.detach())
        gradients[weight] = head.model.transformer.wte.weight.grad.clone()
    lm = tiny.gpt2(layers=1)
    lm.transformer.load_state_dict(head.model.transformer.state_dict())
    expected = torch.zeros(())
    for row in rows[:2]:  # one token predicts nothing
        ids = torch.tensor(row)
        expected = expected + F.cross_entropy(lm(input_ids=ids[None]).logits[0, :-1], ids[1:])
    expected.backward()
    assert losses[0.7] - losses[0.0] == pytest.approx(0.7 * float(expected.detach()), rel=1e-4)
    # the gradient reaches the embedding through the inputs and through the outputs
    gradient = (gradients[0.7] - gradients[0.0]) / 0.7
    torch.testing.assert_close(gradient, lm.transformer.wte.weight.grad, atol=1e-4, rtol=1e-3)


def test_labels_go_with_their_reviews_and_each_pass_crops_anew() -> None:
    reviews = [[i] * 3 + list(range(40)) for i in range(6)]
    labels = [i % 2 for i in range(6)]
    opening = TwoLabel(make_head(), reviews, labels, tiny.two_label(crop=Crop.opening), PROMPTS, 3, None)
    assert opening.steps == 4
    seen = [
        (row[0], int(label))
        for batch in opening.batches(0)
        for row, label in zip(batch.rows, batch.labels, strict=True)
    ]
    assert sorted(seen[:6]) == sorted(seen[6:]) == [(i, i % 2) for i in range(6)]
    anywhere = TwoLabel(make_head(), reviews, labels, tiny.two_label(), PROMPTS, 3, None)
    crops = [[tuple(anywhere.crop_of(index, epoch)) for index in range(6)] for epoch in (0, 1)]
    assert sum(first != second for first, second in zip(*crops, strict=True)) >= 4
    batches = list(anywhere.batches(0))
    chosen = [anywhere.stream.at(step) for step in range(4)]
    for step, batch in enumerate(batches):  # steps 0 and 1 are the first pass, 2 and 3 the second
        assert [tuple(row) for row in batch.rows] == [crops[step // 2][i] for i in chosen[step]]
    assert [batch.rows for batch in anywhere.batches(3)] == [batches[3].rows]


def test_dropout_is_on() -> None:
    head = make_head(dropout=0.3)
    algorithm = TwoLabel(head, [[1, 2, 3, 4]] * 4, [0, 1, 0, 1], tiny.two_label(), PROMPTS, 3, None)
    part = next(algorithm.batches(0)).parts(0, 1, None)[0]
    torch.manual_seed(0)
    losses = {float(algorithm.loss(algorithm.module, part)[0].detach()) for _ in range(3)}
    assert len(losses) == 3


def test_crops_begin_with_bos() -> None:
    reviews, labels = [list(range(40)) for _ in range(6)], [0, 1] * 3
    plain, begun = (TwoLabel(make_head(), reviews, labels, tiny.two_label(), PROMPTS, 3, bos) for bos in (None, 18))
    assert all(begun.crop_of(index, 1) == [18, *plain.crop_of(index, 1)] for index in range(6))
