"""Tokenizers give transformers' ids on hard text, and say clearly what they can't read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from miaotui.compiler.errors import InputError, ModelError
from miaotui.frontends.gguf.header import read_header
from miaotui.frontends.gguf.tokenizer import tokenizer_assets as gguf_assets
from miaotui.frontends.huggingface.tokenizer import tokenizer_assets
from miaotui.runtime.text import Tokenizer
from support.hard_text import hard_lines
from support.models import minilm_folder, smollm2_gguf, smollm2_tokenizer
from support.small_tokenizers import FAMILIES, save
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

LINES = hard_lines()


def opened(source: Path, folder: Path, **options: int) -> Tokenizer:
    """The tokenizer as an executable folder compiled from ``source`` holds it."""
    for name, data in tokenizer_assets(source, {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    return Tokenizer.open(folder, **options)


def equal_ids(ours: Tokenizer, theirs: object) -> None:
    assert len(LINES) == 10_000
    assert ours.encode_batch(LINES) == theirs(LINES)["input_ids"]
    assert (
        ours.encode_batch(LINES[:500], special=False)
        == theirs(LINES[:500], add_special_tokens=False)["input_ids"]
    )
    assert [ours.encode(line) for line in LINES[:200]] == ours.encode_batch(LINES[:200])


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_equal_transformers(family, tmp_path):
    save(family, tmp_path / "source")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "source")
    ours = opened(tmp_path / "source", tmp_path / "out")
    equal_ids(ours, theirs)
    assert (ours.bos_id, ours.pad_id) == (theirs.bos_token_id, theirs.pad_token_id)
    assert ours.eos_ids == frozenset({theirs.eos_token_id} - {None})
    assert ours.vocabulary == len(theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_equal_transformers(family, tmp_path):
    save(family, tmp_path / "source")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "source")
    ours = opened(tmp_path / "source", tmp_path / "out")
    for first, second in zip(LINES[:300], LINES[300:600], strict=True):
        wanted = theirs(first, second, return_token_type_ids=True)
        assert ours.encode_pair(first, second) == (wanted["input_ids"], wanted["token_type_ids"])


@pytest.mark.parametrize("family", FAMILIES)
def test_text_equals_transformers(family, tmp_path):
    save(family, tmp_path / "source")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "source")
    ours = opened(tmp_path / "source", tmp_path / "out")
    for ids in ours.encode_batch(LINES[::20]):
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_ids_of_minilm_equal_transformers(tmp_path):
    ours = opened(minilm_folder(), tmp_path)
    equal_ids(ours, AutoTokenizer.from_pretrained(minilm_folder()))


def test_truncation_and_padding_stored_in_the_file_are_not_applied():
    tokenizer = Tokenizer.open(minilm_folder())
    assert len(tokenizer.encode("word " * 300)) == 302
    assert len(tokenizer.encode("word")) == 3


@pytest.mark.slow
def test_ids_of_smollm2_equal_transformers(tmp_path):
    path = smollm2_gguf()
    for name, data in gguf_assets(read_header(path), "llama", 49152).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    ours = Tokenizer.open(tmp_path)
    equal_ids(ours, smollm2_tokenizer())


def test_vocabulary_files_become_a_tokenizer(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "vocab.txt").write_text((minilm_folder() / "vocab.txt").read_text("utf-8"), "utf-8")
    (source / "config.json").write_text('{"model_type": "bert"}')
    ours = opened(source, tmp_path / "out")
    assert (
        ours.encode_batch(LINES[::50])
        == AutoTokenizer.from_pretrained(minilm_folder())(LINES[::50])["input_ids"]
    )


def test_generation_config_says_what_ends_a_text(tmp_path):
    save("byte-level BPE", tmp_path / "tokenizer")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert Tokenizer.open(tmp_path).eos_ids == {2, 7}


def test_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="has no tokenizer"):
        Tokenizer.open(tmp_path)


def test_tokenizer_larger_than_the_model_is_refused(tmp_path):
    save("byte-level BPE", tmp_path)
    with pytest.raises(ModelError, match="tokens, the model's vocabulary 300"):
        Tokenizer.open(tmp_path, vocabulary=300)


def test_added_token_beyond_the_model_is_refused_where_it_is_used(tmp_path):
    save("byte-level BPE", tmp_path)
    count = Tokenizer.open(tmp_path).vocabulary
    tokenizer = Tokenizer.open(tmp_path, vocabulary=count - 1)
    assert tokenizer.encode("hello")
    with pytest.raises(InputError, match="'<tool call>' has id"):
        tokenizer.encode("hello <tool call>")


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "\ud83d\ude00"])
def test_lone_surrogate_is_named(text, tmp_path):
    tokenizer = Tokenizer.open(minilm_folder())
    with pytest.raises(InputError, match=r"lone surrogate \(U\+D"):
        tokenizer.encode(text)
    with pytest.raises(InputError, match="text 1: is no Unicode"):
        tokenizer.encode_batch(["fine", text])


def test_other_things_than_text_are_named():
    with pytest.raises(InputError, match="is a bytes, no str"):
        Tokenizer.open(minilm_folder()).encode(b"bytes")


def test_unknown_ids_give_nothing_and_negative_ones_are_refused():
    tokenizer = Tokenizer.open(minilm_folder())
    assert tokenizer.decode([7592, 999_999, 2088]) == "hello world"
    with pytest.raises(InputError, match="-1 is no token id"):
        tokenizer.decode([-1])


MALFORMED = {
    "empty": "",
    "no JSON": "{",
    "no object": "[]",
    "no model": "{}",
    "missing piece": '{"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}',
    "id of 33 bits": '{"model":{"type":"BPE","vocab":{"a":4294967296},"merges":[]}}',
    "unknown id outside": '{"model":{"type":"Unigram","vocab":[["a",0.0]],"unk_id":5}}',
    "nested without end": "[" * 100_000,
    "unknown model": '{"model":{"type":"Mamba"}}',
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_definition_is_refused(name, tmp_path):
    (tmp_path / "tokenizer.json").write_text(MALFORMED[name])
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.open(tmp_path)


def test_unknown_token_that_does_not_exist_is_an_error_when_it_is_needed(tmp_path):
    model = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "max_input_chars_per_word": 9}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {**model, "continuing_subword_prefix": "##"}})
    )
    with pytest.raises(ModelError, match="can't encode"):
        Tokenizer.open(tmp_path).encode("b")


def test_pattern_that_never_ends_is_stopped(tmp_path):
    backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(a|aa)+$"), "isolated")
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="can't encode"):
        Tokenizer.open(tmp_path).encode("a" * 60 + "b")


def test_no_utf8_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelError, match="no UTF-8"):
        Tokenizer.open(tmp_path)


def test_oversized_file_is_refused(tmp_path):
    save("byte-level BPE", tmp_path)
    with (tmp_path / "tokenizer_config.json").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(ModelError, match="larger than 16 MiB"):
        Tokenizer.open(tmp_path)
