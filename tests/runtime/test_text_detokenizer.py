"""A streaming detokenizer gives the whole text, piece by piece, never a part of a character."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miaotui.runtime.text import Detokenizer, Tokenizer
from support.hard_text import hard_lines
from support.models import minilm_folder
from support.small_tokenizers import FAMILIES, save
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

LINES = hard_lines(2000, seed=11)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    made = {}
    for name in FAMILIES:
        folder = tmp_path_factory.mktemp("family")
        save(name, folder)
        made[name] = Tokenizer.open(folder)
    return made


def streamed(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("skip", [True, False])
def test_pieces_join_to_the_whole_text(family, skip, families):
    tokenizer = families[family]
    for ids in tokenizer.encode_batch(LINES):
        assert "".join(streamed(tokenizer.detokenizer(skip), ids)) == tokenizer.decode(ids, skip)


def test_minilm_pieces_join_to_the_whole_text():
    tokenizer = Tokenizer.open(minilm_folder())
    for ids in tokenizer.encode_batch(LINES):
        assert "".join(streamed(tokenizer.detokenizer(), ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_ids_join_to_the_whole_text(family, families, data):
    tokenizer = families[family]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary + 3), max_size=40))
    for skip in (True, False):
        whole = tokenizer.decode(ids, skip)
        pieces = streamed(tokenizer.detokenizer(skip), ids)
        assert "".join(pieces) == whole
        assert "\ufffd" in whole or not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("family", ["byte-level BPE", "BPE with byte fallback", "Unigram with byte fallback"])
def test_character_of_several_tokens_comes_out_whole(family, families):
    tokenizer = families[family]
    ids = tokenizer.encode("x 𓀀 y", special=False)
    assert len(ids) > 6
    pieces = streamed(tokenizer.detokenizer(), ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum("𓀀" in piece for piece in pieces) == 1


def test_text_that_ends_within_a_character_shows_it_only_at_the_end(families):
    tokenizer = families["byte-level BPE"]
    ids = tokenizer.encode("ab𓀀")[:-1]
    *pieces, last = streamed(tokenizer.detokenizer(), ids)
    assert "".join(pieces) == "ab" and last == "\ufffd"


def test_text_comes_out_as_soon_as_it_is_final(families):
    tokenizer = families["byte-level BPE"]
    detokenizer = tokenizer.detokenizer()
    assert all(detokenizer.push(token) for token in tokenizer.encode("plain text without rare letters"))


def test_a_long_text_costs_no_more_per_token(families):
    tokenizer = families["BPE with byte fallback"]
    ids = tokenizer.encode("the quick fox " * 20_000, special=False)
    detokenizer, count = tokenizer.detokenizer(), len(ids) // 4
    seconds = []
    for start in range(0, 4 * count, count):
        begin = time.process_time()
        for token in ids[start : start + count]:
            detokenizer.push(token)
        seconds.append(time.process_time() - begin)
    assert seconds[3] < 3 * seconds[0]  # quadratic work would be seven times the first quarter's


PIECES = [
    "▁Hello",
    "▁▁",
    "<0xE4>",
    "<0xBD>",
    "<0xA0>",
    "<0xFF>",
    "!",
    "##s",
    " .",
    "er</w>",
    "</w>",
    " n't",
    "▁",
    " ",
    "x",
    "x x",
    "é",
]
DECODERS = {
    "none": None,
    "CTC": decoders.CTC(pad_token="!", word_delimiter_token="x"),
    "BPE": decoders.BPEDecoder(suffix="</w>"),
    "Metaspace": decoders.Metaspace(),
    "Metaspace without prefix": decoders.Metaspace(prepend_scheme="never"),
    "WordPiece": decoders.WordPiece(cleanup=True),
    "Replace": decoders.Replace("▁", " "),
    "Strip of each": decoders.Strip(" ", 1, 0),
    "Strip of all": decoders.Sequence([decoders.Fuse(), decoders.Strip("x", 2, 0)]),
    "Strip at the end": decoders.Sequence([decoders.Fuse(), decoders.Strip("x", 0, 2)]),
    "Replace after Fuse": decoders.Sequence([decoders.Fuse(), decoders.Replace("x", "yy")]),
    "longer Replace after Fuse": decoders.Sequence([decoders.Fuse(), decoders.Replace("xx", "y")]),
    "WordPiece after Fuse": decoders.Sequence([decoders.Fuse(), decoders.WordPiece()]),
    "Llama": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None, max_examples=150)
@given(ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=12))
def test_every_decoder_streams_exactly(name, ids):
    backend = Backend(models.WordLevel({piece: place for place, piece in enumerate(PIECES)}, unk_token="x"))
    if DECODERS[name] is not None:
        backend.decoder = DECODERS[name]
    if name == "Strip at the end":
        ids = [0, 0, *ids]  # the library's panics on a text shorter than what it strips
    assert "".join(streamed(Detokenizer(backend), ids)) == backend.decode(ids, skip_special_tokens=False)
