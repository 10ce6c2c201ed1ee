"""Small tokenizers of every family, trained on the spot, as folders that transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from .hard_text import SCRIPTS

TRAINED = ("latin", "chinese", "code", "contractions", "korean", "emoji")
"""Kinds of text in the vocabularies; characters of all others are unknown or become bytes."""

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """GPT-2's kind: bytes as characters, no unknown token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        made, trainers.BpeTrainer(vocab_size=700, special_tokens=specials, initial_alphabet=alphabet)
    )


def bytes_alone() -> bytes:
    """A tokenizer.json of 256 tokens, a byte each, for the smallest vocabularies."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([], trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet))
    return bytes(made.to_str(), "utf-8")


def sentencepiece_bpe() -> Tokenizer:
    """Llama 2's kind: BPE over characters with spaces as ▁, unknown ones as bytes, BOS in front."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    specials = ["<unk>", "<s>", "</s>", *BYTES]
    made = _trained(made, trainers.BpeTrainer(vocab_size=900, special_tokens=specials, max_token_length=12))
    made = _without_special(made, BYTES)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
    )
    return made


def unigram() -> Tokenizer:
    """T5's kind, with bytes for unknown characters."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace("  ", " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    pieces = json.loads(_trained(made, trainer).to_str())["model"]["vocab"]
    pieces += [[name, -20.0] for name in BYTES]
    made.model = models.Unigram([(str(t), float(p)) for t, p in pieces], unk_id=2, byte_fallback=True)
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return made


def word_piece() -> Tokenizer:
    """BERT's kind."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = _trained(made, trainers.WordPieceTrainer(vocab_size=900, special_tokens=specials))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return made


BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}

FAMILIES: dict[str, tuple[Callable[[], Tokenizer], dict[str, str]]] = {
    "byte-level BPE": (
        byte_level, {"eos": "<|im_end|>", "bos": "<|im_start|>", "pad": "<|endoftext|>"}
    ),
    "BPE with byte fallback": (sentencepiece_bpe, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}),
    "Unigram with byte fallback": (unigram, {"eos": "</s>", "pad": "<pad>", "unk": "<unk>"}),
    "WordPiece": (word_piece, BERT),
}  # fmt: skip
"""A maker and the special tokens by name, for every family."""


def save(name: str, folder: Path, **config: Any) -> None:
    """Write the tokenizer of family ``name`` as a transformers folder."""
    make, special = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    make().save(str(folder / "tokenizer.json"))
    named = {f"{role}_token": token for role, token in special.items()}
    written = {"tokenizer_class": "PreTrainedTokenizerFast", **named, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(written), "utf-8")


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    trainer.show_progress = False
    tokenizer.train_from_iterator([line for kind in TRAINED for line in [SCRIPTS[kind]] * 4], trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", special=False, normalized=False)])
    return tokenizer


def _without_special(tokenizer: Tokenizer, names: list[str]) -> Tokenizer:
    """The tokenizer with ``names`` as plain tokens of its vocabulary: they are bytes, not found in texts."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in names]
    return Tokenizer.from_str(json.dumps(state))
