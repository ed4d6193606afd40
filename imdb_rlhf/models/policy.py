"""Any Hugging Face causal LM as a policy: load, create with random weights, freeze, save."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from imdb_rlhf.config.model import ScratchModel
from imdb_rlhf.errors import RunError, first_line
from imdb_rlhf.models.contract import check_finite, check_output_layer, check_weights, or_refuse
from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.next_token import CausalLM, NextToken
from imdb_rlhf.models.tokens import check_vocabulary, load_tokenizer

EOS, PAD = "<|endoftext|>", "<|pad|>"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Policy:
    """A causal LM with its tokenizer."""

    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def next_token(self) -> NextToken:
        """Its distribution over the next token."""
        return CausalLM(self.lm)

    @property
    def eos_id(self) -> int:
        """The token that ends a completion."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """The token that pads rows: the tokenizer's padding token if it has one, else EOS."""
        pad_id = self.tokenizer.pad_token_id
        return self.eos_id if pad_id is None else int(pad_id)

    @property
    def context(self) -> int:
        """The longest row in tokens."""
        return context_length(self.lm.config)


def context_length(config: object) -> int:
    """The longest row that a model of this configuration reads, in tokens.

    With LongRoPE (Phi-3) the length of the longest row beside it decides how a row is read; up to the original length,
    which is the limit here, it is read in one way.
    """
    names = ("n_positions", "max_position_embeddings", "seq_length", "n_ctx", "max_seq_len", "max_sequence_length")
    lengths = [int(getattr(config, name, None) or 0) for name in names]
    stated = next((length for length in lengths if length > 0), 1 << 20)  # XLNet's says -1: any
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in (rope, *rope.values()):  # one for all layers, or one per type of layer
        if isinstance(kind, Mapping) and kind.get("rope_type") == "longrope":
            name = "original_max_position_embeddings"
            stated = min(stated, int(kind.get(name) or getattr(config, name, None) or stated))
    return stated


def train_tokenizer(texts: Iterable[str], size: int, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with an EOS and a separate padding token.

    Args:
        texts: training texts.
        size: largest number of entries, special ones included.
        vocabulary: number of entries after padding with unused ones, at least `size`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    missing = vocabulary - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|unused{i}|>" for i in range(missing)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def check_folder(folder: Path, key: str) -> None:
    """Refuse an adapter, or a model folder without configuration or weights, before anything is loaded.

    Raises:
        RunError: naming the files.
    """
    if (folder / "adapter_config.json").exists():  # with the library peft transformers would add it, without not
        raise RunError(
            f"{key}={folder} holds an adapter (adapter_config.json); merge it into its model (peft's merge_and_unload) "
            "and give that"
        )
    if not (folder / "config.json").exists():
        raise RunError(f"{key}={folder} holds no config.json; give a folder made by save_pretrained")
    if not any(True for pattern in WEIGHTS for _ in folder.glob(pattern)):
        raise RunError(
            f"{key}={folder} holds no weights ({' or '.join(WEIGHTS)}); give a folder made by save_pretrained"
        )


def load(folder: Path, attention: str, key: str = "model.path") -> Policy:
    """Load a causal LM in float32 with dropout off, on the CPU.

    Args:
        folder: written by `save_pretrained`, tokenizer included.
        attention: transformers' attention implementation.
        key: config key that messages name.

    Raises:
        RunError: weights or tokenizer are missing, weights and configuration do not fit, a weight is not finite, the
            vocabularies do not fit, or the model changes its logits after the output layer.
    """
    check_folder(folder, key)
    tokenizer = load_tokenizer(folder, key)
    try:
        lm, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:
        raise RunError(f"{key}={folder}: its weights cannot be loaded: {first_line(error)}") from error
    if hasattr(lm.config, "auto_map"):
        del lm.config.auto_map  # code of the folder's own, which is not run, here or where the model is saved to
    check_weights(lm, loaded, folder, key, "causal LM")
    check_finite(lm, folder, key)
    check_vocabulary(output_layer(lm).vocabulary, tokenizer, folder, key)
    with or_refuse(f"{key}={folder}: {type(lm).__name__} cannot be read without its output layer"):
        check_output_layer(lm, key)
    return Policy(lm.eval(), tokenizer)


def drop_tokens(lm: PreTrainedModel, rows: int) -> int:
    """Remove a model's vocabulary entries from `rows` on: its distribution is then the old one, given none is sampled.

    Returns:
        The number of entries removed, 0 if it has at most `rows`.
    """
    extra = output_layer(lm).vocabulary - rows
    if extra > 0:
        lm.resize_token_embeddings(rows, mean_resizing=False)
    return max(extra, 0)


def scratch(config: ScratchModel, tokenizer: PreTrainedTokenizerBase) -> Policy:
    """Create a GPT-2 with random weights, which are a function of the configuration alone."""
    gpt2 = GPT2Config(
        vocab_size=config.vocabulary,
        n_positions=config.context,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        activation_function="gelu_pytorch_tanh",  # gelu_new in one pass
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.init_seed)
        lm = AutoModelForCausalLM.from_config(gpt2, attn_implementation=str(config.attention), trust_remote_code=False)
    return Policy(lm.eval(), tokenizer)


def freeze(lm: PreTrainedModel) -> PreTrainedModel:
    """Turn off a model's gradients and dropout; returns the same model."""
    return cast(PreTrainedModel, lm.requires_grad_(False).eval())


def parameters_of(folder: Path) -> int:
    """Count the parameters of the model in a folder, without loading its weights."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config, trust_remote_code=False).parameters())


def save(policy: Policy, folder: Path, card: str, temperature: float) -> None:
    """Write weights, tokenizer and model card (README.md), for `from_pretrained` and `pipeline("text-generation")`.

    The generation defaults are the sampler's: the run's temperature, no top-k, no top-p.
    """
    # a new one: what the model came with (penalties, forced tokens, truncation) is not how its completions are drawn
    policy.lm.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=temperature,
        bos_token_id=policy.tokenizer.bos_token_id,
        eos_token_id=policy.eos_id,
        pad_token_id=policy.pad_id,
    )
    policy.lm.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card)
