"""The two-label reward: crops, the head behind padding, its loss, and its peer."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from imdb_rlhf.algos.ngram import ngram_accuracy
from imdb_rlhf.algos.two_label import LabelledBatch, TwoLabel, crop, position_weights
from imdb_rlhf.config.data import PromptsConfig
from imdb_rlhf.config.reward import Crop, Positions, TwoLabelReward
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.label_head import LabelHead, make_head

PAD = 18
PROMPTS = PromptsConfig(train=1, validation=1, test=1, min_tokens=2, max_tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lm")
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(initializer_range=0.3, bos_token_id=0, eos_token_id=0, **sizes)).save_pretrained(place)
    return place


def config(**changes: object) -> TwoLabelReward:
    values = {"seed": 0, "epochs": 2.0, "batch_size": 3, "crop": Crop.anywhere, "positions": Positions.second_half}
    return cast(TwoLabelReward, SimpleNamespace(**{**values, "dropout": 0.0, "lm_weight": 0.0, **changes}))


def head_of(folder: Path, **changes: object) -> LabelHead:
    """A head whose linear map is far from 0."""
    head = make_head(folder, "eager", config(**changes), PAD)
    torch.manual_seed(2)
    torch.nn.init.normal_(head.model.score.weight)
    return head


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
    assert 910 <= openings <= 1092  # 1/2 and a chance start at 0 in 1000: 1001 and 4 standard deviations of 22.4
    starts = [piece[0] for piece in pieces if piece[0]]
    assert min(starts) < 20 and max(starts) > 970
    assert {len(piece) for piece in pieces} == {7, 8, 9}


def test_a_crop_is_a_function_of_seed_and_names() -> None:
    review = list(range(1000))
    first = crop(review, Crop.anywhere, PROMPTS, 5, 0, "crop", 0, 7)
    assert crop(review, Crop.anywhere, PROMPTS, 5, 0, "crop", 0, 7) == first
    others = [crop(review, Crop.anywhere, PROMPTS, 5, *names) for names in ((1, "crop", 0, 7), (0, "crop", 1, 7))]
    assert first not in others


# --- the head


def logits_of(head: LabelHead, row: list[int]) -> torch.Tensor:
    """The head's linear map of the last position's state of a text, by hand and alone."""
    model = head.model
    return model.score(model.transformer(input_ids=torch.tensor([row])).last_hidden_state[0, -1])


def test_the_head_says_at_each_position_what_it_says_of_the_text_cut_there(folder: Path) -> None:
    head = head_of(folder).eval()
    rows = [[3, 4, 5, 6, 7], [8, 0], [0]]  # 0 is EOS
    ids = torch.full((3, 8), 7)  # garbage behind the rows
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
    with torch.no_grad():
        found, _ = head(ids, torch.tensor([len(row) for row in rows]))
        assert found.shape == (3, 8, 2)
        for at, row in enumerate(rows):
            expected = torch.stack([logits_of(head, row[: end + 1]) for end in range(len(row))])
            torch.testing.assert_close(found[at, : len(row)], expected, atol=1e-5, rtol=1e-4)


def test_what_is_trained_is_what_transformers_scores(folder: Path) -> None:
    head = head_of(folder).eval()
    ids = torch.tensor([[3, 4, 5, 6], [8, 0, PAD, PAD]])
    with torch.no_grad():
        theirs = head.model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        ours, _ = head(ids, torch.tensor([4, 2]))
        torch.testing.assert_close(ours[[0, 1], [3, 1]], theirs, atol=1e-5, rtol=1e-4)


def test_weights_lie_on_the_last_token_or_on_the_second_half() -> None:
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


def test_a_head_starts_from_the_folder_and_its_seed(folder: Path) -> None:
    state = torch.get_rng_state()
    first, again, other = (make_head(folder, "eager", config(seed=seed, dropout=0.25), PAD).model for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(state)
    assert first.score.weight.equal(again.score.weight)
    assert not first.score.weight.equal(other.score.weight)
    body = GPT2LMHeadModel.from_pretrained(folder).transformer.state_dict()
    assert all(first.transformer.state_dict()[name].equal(weight) for name, weight in body.items())
    assert first.config.id2label == {0: "negative", 1: "positive"}
    assert {module.p for module in first.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


# --- the algorithm


@pytest.mark.parametrize("positions", list(Positions))
def test_the_loss_is_the_cross_entropy_of_the_crops(folder: Path, positions: Positions) -> None:
    head = head_of(folder)
    reviews = [[1 + (i + j) % 17 for j in range(4 + 3 * i)] for i in range(5)]
    algorithm = TwoLabel(head, reviews, [0, 1, 1, 0, 1], config(positions=positions), PROMPTS, 3)
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


def test_the_next_token_loss_is_the_mean_over_a_crops_tokens(folder: Path) -> None:
    head = head_of(folder, lm_weight=0.7)
    rows, labels = [[3, 4, 5, 6, 7, 8], [9, 2, 0], [5]], np.array([0, 1, 1])
    found = {}
    for weight in (0.0, 0.7):
        head.lm_weight = weight
        algorithm = TwoLabel(head, rows, labels.tolist(), config(lm_weight=weight), PROMPTS, 3)
        head.zero_grad()
        loss, _ = algorithm.loss(head, LabelledBatch(rows, labels, 3.0).parts(0, 1, None)[0])
        loss.backward()
        found[weight] = (float(loss.detach()), head.model.transformer.wte.weight.grad.clone())
    lm = GPT2LMHeadModel.from_pretrained(folder).eval()
    expected = torch.zeros(())
    for row in rows[:2]:  # one token predicts nothing
        ids = torch.tensor(row)
        expected = expected + F.cross_entropy(lm(input_ids=ids[None]).logits[0, :-1], ids[1:])
    expected.backward()
    assert found[0.7][0] - found[0.0][0] == pytest.approx(0.7 * float(expected.detach()), rel=1e-4)
    # the gradient reaches the embedding from both its ends
    gradient = (found[0.7][1] - found[0.0][1]) / 0.7
    torch.testing.assert_close(gradient, lm.transformer.wte.weight.grad, atol=1e-4, rtol=1e-3)


def test_a_next_token_loss_needs_a_tied_output_layer(tmp_path: Path) -> None:
    sizes = {"vocab_size": 19, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, **sizes)).save_pretrained(
        tmp_path
    )
    head_of(tmp_path)
    with pytest.raises(RunError, match="reward.lm_weight needs"):
        head_of(tmp_path, lm_weight=0.1)


def test_labels_go_with_their_reviews_and_each_pass_crops_anew(folder: Path) -> None:
    reviews = [[i] * 3 + list(range(40)) for i in range(6)]
    labels = [i % 2 for i in range(6)]
    opening = TwoLabel(head_of(folder), reviews, labels, config(crop=Crop.opening), PROMPTS, 3)
    assert opening.steps == 4
    seen = [
        (row[0], int(label))
        for batch in opening.batches(0)
        for row, label in zip(batch.rows, batch.labels, strict=True)
    ]
    assert sorted(seen[:6]) == sorted(seen[6:]) == [(i, i % 2) for i in range(6)]
    anywhere = TwoLabel(head_of(folder), reviews, labels, config(), PROMPTS, 3)
    crops = [[tuple(anywhere.crop_of(index, epoch)) for index in range(6)] for epoch in (0, 1)]
    assert sum(first != second for first, second in zip(*crops, strict=True)) >= 4
    batches = list(anywhere.batches(0))
    chosen = [anywhere.stream.at(step) for step in range(4)]
    for step, batch in enumerate(batches):  # steps 0 and 1 are the first pass, 2 and 3 the second
        assert [tuple(row) for row in batch.rows] == [crops[step // 2][i] for i in chosen[step]]
    assert [batch.rows for batch in anywhere.batches(3)] == [batches[3].rows]


def test_dropout_is_on(folder: Path) -> None:
    head = head_of(folder, dropout=0.3)
    algorithm = TwoLabel(head, [[1, 2, 3, 4]] * 4, [0, 1, 0, 1], config(), PROMPTS, 3)
    part = next(algorithm.batches(0)).parts(0, 1, None)[0]
    torch.manual_seed(0)
    losses = {float(algorithm.loss(algorithm.module, part)[0].detach()) for _ in range(3)}
    assert len(losses) == 3


# --- its peer


def test_the_ngram_classifier_sees_bigrams() -> None:
    # "not good" and "not bad" turn the word, so single words cannot tell
    random = np.random.default_rng(0)
    texts, labels = [], []
    for _ in range(400):
        good, turned = (bool(bit) for bit in random.integers(0, 2, 2))
        filler = " ".join(f"w{n}" for n in random.integers(0, 10, 4))
        texts.append(f"{filler} {'not' if turned else 'so'} {'good' if good else 'bad'} {filler}")
        labels.append(int(good != turned))
    assert ngram_accuracy(texts[:300], labels[:300], texts[300:], labels[300:]) > 0.95
    wrong = [1 - label for label in labels[300:]]
    assert ngram_accuracy(texts[:300], labels[:300], texts[300:], wrong) < 0.05
