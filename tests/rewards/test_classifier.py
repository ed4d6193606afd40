"""Any two-label classifier: each text gets the score that transformers gives it alone."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    OpenAIGPTConfig,
    OpenAIGPTForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
    pipeline,
)

from imdb_rlhf.config.data import Bos
from imdb_rlhf.errors import RunError
from imdb_rlhf.rewards import classifier
from imdb_rlhf.rewards.classifier import ClassifierReward
from imdb_rlhf.rewards.labels import positive_index
from tests.vocabularies import llama_tokenizer

CPU = torch.device("cpu")
WORDS = ["the", "film", "was", "not", "good", "bad", "plot", "very", "acting", "and"]
TEXTS = ["the film was good", "bad", "", "the plot was not very good and the acting was bad", "film", "not bad " * 20]
NAMES = {0: "NEGATIVE", 1: "POSITIVE"}
Make = Callable[..., Path]


def word_tokenizer(special: list[str], **names: str) -> PreTrainedTokenizerFast:
    """A token per word; the id of a `special` word is its place in the list."""
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if "cls_token" in names:
        first, last = names["cls_token"], names["sep_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", special_tokens=[(word, vocabulary[word]) for word in (first, last)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def bert(**changes) -> tuple:
    tokenizer = word_tokenizer(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=14, max_position_embeddings=24, initializer_range=0.5, **sizes, **changes)
    return BertForSequenceClassification(config), tokenizer


def roberta(**changes) -> tuple:
    tokenizer = word_tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>"],
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        bos_token="<s>",
        eos_token="</s>",
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    # positions begin after the padding's id, 1: two of the 26 cannot be used
    config = RobertaConfig(vocab_size=14, max_position_embeddings=26, initializer_range=0.5, **sizes, **changes)
    return RobertaForSequenceClassification(config), tokenizer


def gpt2(padding: str | None = None, **changes) -> tuple:
    """A classifier that reads its last token; without a padding token the end of text pads."""
    names = {"unk_token": "<unk>", "eos_token": "<end>"} | ({} if padding is None else {"pad_token": padding})
    tokenizer = word_tokenizer(["<end>", "<unk>", "<pad>"], **names)
    config = GPT2Config(
        vocab_size=13, n_positions=24, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5, eos_token_id=0, **changes
    )
    return GPT2ForSequenceClassification(config), tokenizer


def xlnet(**changes) -> tuple:
    """A classifier that reads its last token, pads on the left, and knows segments."""
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>"]
    names = dict(zip(("unk", "bos", "eos", "cls", "sep", "pad"), special, strict=True))
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2", special_tokens=[("<sep>", 4), ("<cls>", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        padding_side="left",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token_type_id=3,
        **{f"{name}_token": token for name, token in names.items()},
    )
    config = XLNetConfig(
        vocab_size=16, d_model=16, n_layer=2, n_head=2, d_inner=32, initializer_range=0.5, pad_token_id=5, **changes
    )
    return XLNetForSequenceClassification(config), tokenizer


def gpt1(**changes) -> tuple:
    """A classifier that reads its last token, whose tokenizer has neither an end of text nor padding."""
    sizes = {"n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    config = OpenAIGPTConfig(vocab_size=13, **sizes, **changes)
    return OpenAIGPTForSequenceClassification(config), word_tokenizer(["<unk>", "a", "b"], unk_token="<unk>")


KINDS = {"bert": bert, "roberta": roberta, "gpt2": gpt2, "xlnet": xlnet, "gpt1": gpt1}


@pytest.fixture
def make(tmp_path) -> Make:
    """Writes a tiny classifier with random weights and its tokenizer."""

    def put(kind: str = "bert", id2label: dict[int, str] = NAMES, **changes) -> Path:
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        torch.manual_seed(0)
        label2id = {name: index for index, name in id2label.items()}
        model, tokenizer = KINDS[kind](id2label=id2label, label2id=label2id, **changes)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return put


def alone(folder: Path, texts: list[str], longest: int) -> list[float]:
    """Log-odds of label 1, one text after the other, without padding."""
    tokenizer, log_odds = AutoTokenizer.from_pretrained(folder), []
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        if len(ids) > longest:  # cut before the closing token, which is kept
            ids = ids[: longest - 1] + ids[-1:] if tokenizer.sep_token_id is not None else ids[:longest]
        with torch.no_grad():
            types = tokenizer(text).get("token_type_ids")
            if types is not None:
                types = torch.tensor([types[: len(ids) - 1] + types[-1:]])
            more = {"token_type_ids": types} if "token_type_ids" in tokenizer.model_input_names else {}
            negative, positive = model(input_ids=torch.tensor([ids]), **more).logits[0].tolist()
        log_odds.append(positive - negative)
    return log_odds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_scores_are_those_of_each_text_alone(make, kind, batch_size):
    folder = make(kind)
    texts = [text for text in TEXTS if text]
    expected = alone(folder, texts, 10_000 if kind == "xlnet" else 24)
    scores = ClassifierReward(folder, None, batch_size, CPU).score(texts)
    np.testing.assert_allclose(scores.logit, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores.reward, [1 / (1 + math.exp(-gap)) for gap in expected], rtol=1e-4, atol=1e-5)
    assert len(set(np.round(scores.logit, 3))) > 3  # the texts do differ
    assert scores.logit.dtype == scores.reward.dtype == np.float64


@pytest.mark.parametrize("kind", KINDS)
def test_neither_batches_nor_order_nor_neighbours_matter(make, kind):
    reward = ClassifierReward(make(kind), None, 3, CPU)
    scores = reward.score(TEXTS).logit
    assert np.isfinite(scores).all()  # the empty text too
    np.testing.assert_allclose(reward.score(TEXTS[::-1]).logit[::-1], scores, atol=1e-4)
    np.testing.assert_allclose([reward.score([text]).logit[0] for text in TEXTS], scores, atol=1e-4)
    np.testing.assert_allclose(reward.score(TEXTS * 2).logit, np.tile(scores, 2), atol=1e-4)


@pytest.mark.parametrize("padding", ["<pad>", "<unk>", None])
@pytest.mark.parametrize("stored", [None, 0, 5])
def test_a_last_token_classifier_never_reads_padding(make, padding, stored):
    """The tokenizer's padding counts, whatever the model's configuration says."""
    texts = [text for text in TEXTS if text]
    folder = make("gpt2", padding=padding, pad_token_id=stored)
    expected = alone(make("gpt2", pad_token_id=0), texts, 24)  # the same weights; no text holds the token 0
    scores = ClassifierReward(folder, None, 100, CPU).score(texts)
    np.testing.assert_allclose(scores.logit, expected, rtol=1e-4, atol=1e-4)


def with_end(kind: str, padding: str) -> tuple:
    """A classifier whose tokenizer ends a text with a token of its own."""
    special = ["<pad>", "<unk>", "<end>", "<other>"]
    tokenizer = word_tokenizer(special, unk_token="<unk>", eos_token="<end>", pad_token=padding)
    ending = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    tokenizer.backend_tokenizer.post_processor = ending
    names: dict[str, Any] = {"id2label": NAMES, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    names |= {"vocab_size": 14, "eos_token_id": 2, "pad_token_id": None, "bos_token_id": 0}
    wide: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    wide |= {"max_position_embeddings": 24}
    deep: dict[str, Any] = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    deep |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 24}
    t5: dict[str, Any] = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }
    sizes: dict[str, Any] = {
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24},
        "llama": wide,
        "bart": deep | {"pad_token_id": 0},
        "mbart": deep | {"pad_token_id": 0},
        "t5": t5 | {"pad_token_id": 0},
        "nystromformer": wide | {"num_landmarks": 4, "segment_means_seq_len": 16},
        "canine": wide,
        "funnel": {"block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32},
    }[kind]
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **names | sizes))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model, tokenizer


def put_with_end(folder: Path, kind: str, padding: str = "<end>", **changes) -> Path:
    torch.manual_seed(0)
    model, tokenizer = with_end(kind, padding)
    for name, value in changes.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("padding", ["<end>", "<pad>", "<unk>"])
@pytest.mark.parametrize("stored", [None, 0, 2, 3])
def test_an_end_that_pads_too_is_read_as_transformers_reads_it(tmp_path, kind, padding, stored):
    """The head reads the end of a text, unless the model's own padding is that token."""
    folder, texts = put_with_end(tmp_path, kind, padding, pad_token_id=stored), [*TEXTS[:4], "a snowman"]
    scores = ClassifierReward(folder, None, 100, CPU).score(texts).logit
    full = [text for text in texts if text]
    expected = alone(folder, full, 10_000)
    np.testing.assert_allclose([scores[texts.index(text)] for text in full], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bart", "mbart", "t5"])
def test_a_head_that_looks_for_the_end_of_a_text(tmp_path, kind):
    folder = put_with_end(tmp_path, kind, "<pad>")
    scores = ClassifierReward(folder, None, 100, CPU).score(TEXTS).logit
    np.testing.assert_allclose(scores[:2], alone(folder, TEXTS[:2], 10_000), rtol=1e-4, atol=1e-4)
    assert np.isfinite(scores).all() and len(set(np.round(scores, 4))) > 3


@pytest.mark.parametrize(
    ("kind", "message"),
    [("nystromformer", "cannot read a row of 9 words: "), ("canine", "has no embedding of tokens")]
    + [("funnel", "cannot read rows of . to . tokens: ")],
)
def test_a_model_that_cannot_be_used_is_told_by_its_reason(tmp_path, kind, message):
    with pytest.raises(RunError, match=f"^reward.path={tmp_path} .*{message}") as caught:
        ClassifierReward(put_with_end(tmp_path, kind, "<pad>"), None, 4, CPU)
    assert "\n" not in str(caught.value) and "config.json" not in str(caught.value)


def test_where_no_side_can_be_padded_rows_of_one_length_go_together(make):
    folder, texts = make("bert"), [text for text in TEXTS if text]

    class Averaging(BertForSequenceClassification):
        """A classifier that reads padding too, on whichever side it is."""

        def forward(self, input_ids, **others):
            return super().forward(input_ids=input_ids)

    reward = ClassifierReward(folder, None, 100, CPU)
    expected = reward.score(texts).logit
    reward.model.__class__ = Averaging
    assert np.abs(reward.score(texts).logit - expected).max() > 0.01
    reward.side = reward._padding_side(reward._alone(9), 9)
    assert reward.side is None
    np.testing.assert_allclose(reward.score(texts).logit, expected, atol=1e-4)


def test_no_text(make):
    assert ClassifierReward(make(), None, 4, CPU).score([]).logit.shape == (0,)


def test_dropout_is_off(make):
    reward = ClassifierReward(make(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5), None, 4, CPU)
    assert reward.score(TEXTS).logit.tolist() == reward.score(TEXTS).logit.tolist()


def test_extreme_log_odds_do_not_overflow(make):
    reward = ClassifierReward(make(), None, 4, CPU)
    with torch.no_grad():
        reward.model.classifier.weight.mul_(1e5)
    scores = reward.score(TEXTS)
    assert np.abs(scores.logit).max() > 1000
    assert ((scores.reward >= 0) & (scores.reward <= 1)).all()


# --- the positive label


def test_the_positive_label_is_found_by_name_wherever_it_is(make):
    plain, turned = make(), make(id2label={0: "pos", 1: "neg"})
    scores = [ClassifierReward(folder, None, 4, CPU).score(TEXTS).logit for folder in (plain, turned)]
    np.testing.assert_allclose(scores[0], -scores[1], atol=1e-6)


def test_the_positive_label_may_be_named(make):
    folder = make(id2label={0: "LABEL_0", 1: "LABEL_1"})
    scores = [ClassifierReward(folder, f"LABEL_{label}", 4, CPU).score(TEXTS).logit for label in (0, 1)]
    np.testing.assert_allclose(scores[0], -scores[1], atol=1e-6)


@pytest.mark.parametrize(
    ("names", "wanted", "index"),
    [
        ({0: "NEGATIVE", 1: "POSITIVE"}, None, 1),
        ({0: "Positive", 1: "Negative"}, None, 0),
        ({0: "neg", 1: "pos"}, None, 1),
        ({0: "label_negative", 1: "label_positive"}, None, 1),
        ({0: "0 (negative)", 1: "1 (positive)"}, None, 1),
        ({0: "LABEL_0: Positive", 1: "LABEL_1: Negative"}, None, 0),
        ({0: "a", 1: "b"}, "a", 0),
        ({0: "NEGATIVE", 1: "POSITIVE"}, "NEGATIVE", 0),
    ],
)
def test_positive_index(names, wanted, index):
    assert positive_index(names, wanted, "reward.path") == index


@pytest.mark.parametrize(
    "name",
    ["isn't positive", "barely positive", "cannot be positive", "pos negative", "negative-positive", "pos_tag"]
    + ["neutral/positive", "Very positive", "positive or neutral", "pos/neg", "positive?", "+positive"],
)
@pytest.mark.parametrize("other", ["other", "positive"])
def test_a_label_with_the_word_in_it_is_asked_for(name, other):
    with pytest.raises(RunError, match="is positive. set reward.positive_label to its name"):
        positive_index({0: other, 1: name}, None, "reward.path")


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, None, "reward.path: which of LABEL_0, LABEL_1 is positive? set reward.positive"),
        (
            {0: "oppose", 1: "support"},
            None,
            "reward.path: which of oppose, support is positive? set reward.positive_label",
        ),
        ({0: "hardly positive", 1: "ok"}, None, "reward.path: which of hardly positive, ok is positive?"),
        ({0: "False positive", 1: "other"}, None, "reward.path: which of False positive, other is positive?"),
        ({0: "post", 1: "reply"}, None, "reward.path: which of post, reply is positive?"),
        ({0: "non-positive", 1: "other"}, None, "reward.path: which of non-positive, other is positive?"),
        ({0: "positive", 1: "not positive"}, None, "reward.path: which of positive, not positive is positive?"),
        ({0: "NEGATIVE", 1: "POSITIVE"}, "good", "reward.path: which of NEGATIVE, POSITIVE is positive?"),
        ({0: "a", 1: "b", 2: "pos"}, None, "reward.path has 3 labels (a, b, pos); give a two-label classifier"),
        ({0: "pos"}, None, "reward.path has 1 labels (pos); give a two-label classifier"),
    ],
)
def test_no_positive_label(make, names, wanted, message):
    with pytest.raises(RunError) as caught:
        positive_index(names, wanted, "reward.path")
    assert str(caught.value).startswith(message)
    with pytest.raises(RunError):
        ClassifierReward(make(id2label=names), wanted, 4, CPU)


# --- folders that are no classifier


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_is_missing(make, name):
    folder = make()
    (folder / name).unlink()
    with pytest.raises(RunError) as caught:
        ClassifierReward(folder, None, 4, CPU)
    message = str(caught.value)
    assert message.startswith(f"reward.path={folder} ") and "\n" not in message


def test_damaged_weights(make):
    folder = make()
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RunError, match=f"^reward.path={folder} cannot be loaded as a sequence classifier: "):
        ClassifierReward(folder, None, 4, CPU)


def test_a_model_without_a_head(make):
    folder = make()
    bert(id2label=NAMES, label2id={"NEGATIVE": 0, "POSITIVE": 1})[0].bert.save_pretrained(folder)
    with pytest.raises(RunError, match=f"^reward.path={folder} has no weights for classifier.bias, classifier.weight;"):
        ClassifierReward(folder, None, 4, CPU)


def test_weights_that_would_be_left_out(make):
    """A published RoBERTa classifier holds a pooler that it does not use, which is no fault; a bias left out is one."""
    folder = make("roberta")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"roberta.pooler.dense.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    ClassifierReward(folder, None, 4, CPU)
    more = {"classifier.dense.lora_A.weight": torch.ones(2)}
    save_file(weights | more, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=f"^reward.path={folder} holds weights that its config.json has no place for"):
        ClassifierReward(folder, None, 4, CPU)


def test_a_tokenizer_with_more_entries_than_the_model(make):
    folder = make()
    longer = bert()[1]
    longer.add_tokens([f"word{number}" for number in range(5)])
    longer.save_pretrained(folder)
    message = "the model has 14 entries and its tokenizer 19, of which the model lacks 'word0'"
    with pytest.raises(RunError, match=f"^reward.path={folder}: {message}"):
        ClassifierReward(folder, None, 4, CPU)


def test_an_unknown_character_at_the_end_is_read(make):
    """GPT-1's tokenizer has no token that a text cannot hold, so none can pad."""
    folder = make("gpt1")
    texts = ["good film", "good film snowman", "bad snowman", "the plot"]
    assert ClassifierReward(folder, None, 4, CPU).score(texts).logit == pytest.approx(
        alone(folder, texts, 24), abs=1e-4
    )


def test_labels_that_do_not_exclude_each_other(make):
    """As transformers' own pipeline scores them: each label by itself."""
    folder = make("bert", problem_type="multi_label_classification")
    pipe = pipeline("text-classification", model=str(folder), top_k=None)
    (rows,) = pipe(TEXTS[:1])
    expected = next(row["score"] for row in rows if row["label"] == "POSITIVE")
    assert ClassifierReward(folder, None, 4, CPU).score(TEXTS[:1]).reward[0] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(RunError, match="gives two numbers that are no labels' .regression.; give a classifier"):
        ClassifierReward(make("bert", problem_type="regression"), None, 4, CPU)


def test_positions_that_begin_after_0_leave_fewer_of_them(make, monkeypatch):
    """Many types do as RoBERTa does; which ones is not known by their names."""
    monkeypatch.setattr(classifier, "_stated_length", lambda config: config.max_position_embeddings)
    reward = ClassifierReward(make("roberta"), None, 4, CPU)
    assert reward.limit == 24
    assert np.isfinite(reward.score(["the film was good " * 20]).logit).all()


# --- special tokens


def rows_read(reward: ClassifierReward, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The token rows that the model will read, filled as texts are scored."""
    read: list[list[int]] = []
    logits = reward._logits

    def noted(rows: list[list[int]], side: str) -> np.ndarray:
        read.extend(rows)
        return logits(rows, side)

    monkeypatch.setattr(reward, "_logits", noted)
    return read


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "xlnet"])
def test_the_name_of_a_special_token_is_text(make, kind, monkeypatch):
    """A text scores as its letters do, wherever it names the token that would end it."""
    reward = ClassifierReward(make(kind), None, 4, CPU)
    read = rows_read(reward, monkeypatch)
    name = reward.tokenizer.sep_token or reward.tokenizer.eos_token
    end, unknown = reward.tokenizer.convert_tokens_to_ids(name), reward.tokenizer.unk_token_id
    reward.score([f"the film was {name} bad"])
    (row,) = read
    assert row.count(end) == (0 if kind == "gpt2" else 1)  # the tokenizer's own, at the end
    assert unknown in row  # the letters, which this vocabulary lacks
    film = [reward.tokenizer.convert_tokens_to_ids(word) for word in ("the", "film", "was")]
    start = [] if kind in ("gpt2", "xlnet") else [row[0]]
    assert row[: len(start) + 3] == [*start, *film]


def test_a_long_text_with_a_special_name_is_cut_before_the_closing_token(make, monkeypatch):
    reward = ClassifierReward(make("roberta"), None, 4, CPU)
    read = rows_read(reward, monkeypatch)
    reward.score(["bad </s> film " * 30])
    assert len(read[0]) == 24 and (read[0][0], read[0][-1]) == (0, 2) and read[0].count(2) == 1


@pytest.mark.parametrize(("bos", "expected"), [(Bos.always, [1]), (Bos.never, []), (Bos.auto, [1])])
def test_a_trained_classifier_reads_texts_behind_bos_as_it_was_trained(tmp_path, bos, expected, monkeypatch):
    tokenizer = llama_tokenizer(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, id2label=NAMES)
    config.pad_token_id = tokenizer.pad_token_id
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    reward = ClassifierReward(tmp_path, None, 4, CPU, "two_label", bos=bos)
    read = rows_read(reward, monkeypatch)
    reward.score(["the film"])
    assert read == [[*expected, *tokenizer("the film", add_special_tokens=False)["input_ids"]]]


def test_weights_that_are_not_finite_are_called_that(make):
    folder = make()
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=f"^reward.path={folder}: classifier.bias holds weights that are nan; give"):
        ClassifierReward(folder, None, 4, CPU)


def test_a_special_token_beyond_the_model_that_a_text_is_put_into(make):
    """CLS is in every row, so a model without it is refused."""
    folder = make()
    tokenizer = bert()[1]
    tokenizer.add_special_tokens({"cls_token": "[FIRST]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(RunError, match=r"lacks '\[FIRST\]' \(token 14\)"):
        ClassifierReward(folder, None, 4, CPU)
