"""The two-label head on every position against the model's own states, and against transformers."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from imdb_rlhf.errors import RunError
from imdb_rlhf.models.label_head import LabelHead, make_head
from tests import tiny

PAD = 18


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM's folder."""
    place = tmp_path_factory.mktemp("lm")
    tiny.gpt2(0, layers=1, spread=0.3).save_pretrained(place)
    return place


def head_of(folder: Path) -> LabelHead:
    """A head whose linear map is far from 0."""
    head = make_head(folder, "eager", tiny.two_label(), PAD)
    torch.manual_seed(2)
    torch.nn.init.normal_(head.model.score.weight)
    return head.eval()


def logits_of(head: LabelHead, row: list[int]) -> torch.Tensor:
    """The head's linear map of a text's last state, the text alone and without padding."""
    model = head.model
    return model.score(model.transformer(input_ids=torch.tensor([row])).last_hidden_state[0, -1])


def test_the_logits_at_a_position_are_those_of_the_text_cut_off_there(folder: Path) -> None:
    head = head_of(folder)
    rows = [[3, 4, 5, 6, 7], [8, 0], [0]]  # 0 is EOS
    ids = torch.full((3, 8), 7)  # garbage behind the rows
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
    with torch.no_grad():
        logits, _ = head(ids, torch.tensor([len(row) for row in rows]))
        assert logits.shape == (3, 8, 2)
        for at, row in enumerate(rows):
            expected = torch.stack([logits_of(head, row[: end + 1]) for end in range(len(row))])
            torch.testing.assert_close(logits[at, : len(row)], expected, atol=1e-5, rtol=1e-4)


def test_the_logits_of_the_last_token_are_those_of_transformers(folder: Path) -> None:
    head = head_of(folder)
    ids = torch.tensor([[3, 4, 5, 6], [8, 0, PAD, PAD]])
    with torch.no_grad():
        expected = head.model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        logits, _ = head(ids, torch.tensor([4, 2]))
        torch.testing.assert_close(logits[[0, 1], [3, 1]], expected, atol=1e-5, rtol=1e-4)


def test_a_head_starts_from_the_folder_and_its_seed(folder: Path) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        make_head(folder, "eager", tiny.two_label(seed=seed, dropout=0.25), PAD).model for seed in (0, 0, 1)
    )
    assert torch.get_rng_state().equal(state)
    assert first.score.weight.equal(again.score.weight)
    assert not first.score.weight.equal(other.score.weight)
    body = GPT2LMHeadModel.from_pretrained(folder).transformer.state_dict()
    assert all(first.transformer.state_dict()[name].equal(weight) for name, weight in body.items())
    assert first.config.id2label == {0: "negative", 1: "positive"}
    assert {module.p for module in first.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def test_a_next_token_loss_needs_a_tied_output_layer(tmp_path: Path) -> None:
    tiny.gpt2(0, layers=1, tie_word_embeddings=False).save_pretrained(tmp_path)
    make_head(tmp_path, "eager", tiny.two_label(), PAD)
    with pytest.raises(RunError, match="reward.lm_weight needs"):
        make_head(tmp_path, "eager", tiny.two_label(lm_weight=0.1), PAD)
