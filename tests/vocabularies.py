"""Tiny tokenizers of several families, made by hand."""

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"  # ids 0 to 3
ALPHABET = list(string.ascii_letters + string.digits + string.punctuation + "▁é")


def llama_tokenizer(texts: Iterable[str], *, adds_bos: bool = True, size: int = 180) -> PreTrainedTokenizerFast:
    """Like Llama's and Gemma's: BPE over text with ▁ for spaces, special tokens in its vocabulary, BOS before a text.

    Ids 0 to 3 are padding, BOS, EOS and the unknown character; BOS is 1.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    names = [PAD, BOS, EOS, UNKNOWN]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=names, initial_alphabet=ALPHABET, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN
    )


def _letters(special: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate([*special, *ALPHABET])}


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """Like BERT's: lower case, punctuation by itself, [CLS] before and [SEP] after a text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = _letters([*special, "a", "review", "names", "sep", "good"])
    vocabulary |= {f"##{letter}": len(vocabulary) + at for at, letter in enumerate(string.ascii_lowercase)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", **names)


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Like T5's and XLM-R's: the names of its special tokens are pieces of text too, and the likeliest ones."""
    pieces = [(PAD, 0.0), ("</s>", 0.0), (UNKNOWN, 0.0), *((letter, -3.0) for letter in ALPHABET)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token=PAD, unk_token=UNKNOWN)


def whole_word_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama 3's, which takes a word that is in the vocabulary whole, but with EOS among its words."""
    vocabulary = _letters(["</s>", "Ġ"])
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
