"""Bad GGUF files: each is refused as the user's mistake with place, fact and fix; none crashes or hangs."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miaotui.compiler.errors import CompileError, ModelError, UnsupportedError
from miaotui.frontends.gguf.header import read_header
from miaotui.frontends.gguf.module import describe
from miaotui.frontends.gguf.tokenizer import tokenizer_assets
from miaotui.frontends.load import load
from support.gguf_files import BYTES, write_gguf

U32, F32, STRING, ARRAY = 4, 6, 8, 9


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def file_of(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: int = 4096,
    counts: tuple[int, int] | None = None,
    start: bytes = b"GGUF\x03\0\0\0",
) -> bytes:
    counts = (len(tensors), len(pairs)) if counts is None else counts
    head = start + struct.pack("<QQ", *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


LLAMA = pair("general.architecture", STRING, text("llama"))
BROKEN = {
    "empty": (b"", "is empty"),
    "other kind": (b"PK\3\4" + bytes(40), "starts with b'PK"),
    "cut in the counts": (b"GGUF\x03\0\0\0\x01", "ends inside counts"),
    "too many tensors": (file_of(counts=(2**60, 0)), "declares 1,152,921,504,606,846,976 tensors"),
    "too many pairs": (file_of(counts=(0, 2**63)), "metadata entries"),
    "long key": (file_of((struct.pack("<Q", 2**40) + b"x",)), "a metadata key is"),
    "key over the end": (file_of((struct.pack("<Q", 60_000) + b"x",), data=0), "ends inside a metadata key"),
    "value over the end": (file_of((text("k") + struct.pack("<IQ", STRING, 2**50),)), "ends inside 'k'"),
    "key of no text": (file_of((pair(b"\xff\xfe", U32, bytes(4)),)), "is no UTF-8 text"),
    "value of no text": (file_of((pair("k", STRING, text(b"\xc3(")),)), "'k' is no UTF-8 text"),
    "key twice": (file_of((LLAMA, LLAMA)), "'general.architecture': is given twice"),
    "unknown value type": (file_of((pair("k", 77, bytes(8)),)), "value of unknown type 77"),
    "flag of 2": (file_of((pair("k", 7, b"\2"),)), "neither 0 nor 1"),
    "absurd array": (file_of((pair("k", ARRAY, struct.pack("<IQ", F32, 2**61)),)), "values in 'k'"),
    "absurd strings": (file_of((pair("k", ARRAY, struct.pack("<IQ", STRING, 2**61)),)), "strings in 'k'"),
    "alignment 0": (file_of((pair("general.alignment", U32, bytes(4)),)), "is 0, no multiple of 8"),
    "alignment 12": (file_of((pair("general.alignment", U32, b"\x0c\0\0\0"),)), "is 12"),
    "alignment text": (file_of((pair("general.alignment", STRING, text("x")),)), "is 'x'"),
    "five dimensions": (file_of(tensors=(tensor("t", (1,) * 5),)), "has 5 dimensions"),
    "no dimension": (file_of(tensors=(tensor("t", ()),)), "has the shape []"),
    "empty dimension": (file_of(tensors=(tensor("t", (0, 32)),)), "has the shape [0, 32]"),
    "huge dimensions": (file_of(tensors=(tensor("t", (2**63, 2**63)),)), "needs bytes"),
    "negative dimension": (file_of(tensors=(tensor("t", (2**64 - 32,)),)), "needs bytes"),
    "data over the end": (file_of(tensors=(tensor("t", (64, 32)),)), "the file has"),
    "offset over the end": (file_of(tensors=(tensor("t", offset=2**62),)), "needs bytes"),
    "offset between": (file_of(tensors=(tensor("t", offset=8),)), "is not aligned"),
    "row of half a block": (file_of(tensors=(tensor("t", (2, 33), 8),)), "blocks of 32 do not divide"),
    "tensor twice": (file_of(tensors=(tensor("t"), tensor("t", offset=256))), "is given twice"),
    "tensors over each other": (file_of(tensors=(tensor("t"), tensor("u", offset=64))), "lies over"),
}  # fmt: skip
UNSUPPORTED = {
    "version 1": (file_of(start=b"GGUF\x01\0\0\0"), "is GGUF version 1"),
    "version 9": (file_of(start=b"GGUF\x09\0\0\0"), "is GGUF version 9"),
    "big-endian": (file_of(start=b"GGUF\0\0\0\x03"), "big-endian"),
    "array of arrays": (file_of((pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1)),)), "array of arrays"),
    "tensor type": (file_of(tensors=(tensor("t", kind=10), tensor("u", kind=99))), "type Q2_K"),
}  # fmt: skip


def refused(data: bytes, folder: Path, kind: type[CompileError]) -> str:
    path = folder / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(CompileError) as caught:
        load(path)
    assert type(caught.value) is kind
    assert all(problem.place and problem.fact and problem.fix for problem in caught.value.problems)
    return str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_are_refused(name, tmp_path):
    data, said = BROKEN[name]
    assert said in refused(data, tmp_path, ModelError)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_reader_is_refused_by_name(name, tmp_path):
    data, said = UNSUPPORTED[name]
    assert said in refused(data, tmp_path, UnsupportedError)


def test_all_tensors_of_unknown_types_are_listed(tmp_path):
    said = refused(UNSUPPORTED["tensor type"][0], tmp_path, UnsupportedError)
    assert "tensor 't': is of type Q2_K" in said and "tensor 'u': is of type 99" in said
    assert "Q4_K" in said


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small sound file's bytes."""
    folder = tmp_path_factory.mktemp("small")
    return write_gguf(folder / "small.gguf", types="Q4_0", tokens=BYTES).path.read_bytes()


class Changed:
    """A sound file with metadata or tensors changed, written again."""

    def __init__(self, data: bytes, folder: Path) -> None:
        self.path = folder / "changed.gguf"
        (folder / "sound.gguf").write_bytes(data)
        self.reader = gguf.GGUFReader(folder / "sound.gguf")
        self.fields = {
            f.name: (f.contents(), f.types)
            for f in self.reader.fields.values()
            if not f.name.startswith("GGUF.")
        }
        self.tensors = {t.name: (np.array(t.data), t.tensor_type) for t in self.reader.tensors}

    def write(self) -> Path:
        writer = gguf.GGUFWriter(self.path, str(self.fields.pop("general.architecture")[0]))
        for name, (value, types) in self.fields.items():
            writer.add_key_value(name, value, types[0], types[1] if len(types) > 1 else None)
        for name, (data, kind) in self.tensors.items():
            writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return self.path

    def said(self, kind: type[CompileError] = ModelError) -> str:
        path = self.write()
        with pytest.raises(CompileError) as caught:
            load(path)
        assert type(caught.value) is kind, str(caught.value)
        return str(caught.value)


@pytest.fixture
def changed(small, tmp_path):
    return Changed(small, tmp_path)


class TestContradictions:
    def test_unchanged_file_is_sound(self, changed):
        header = read_header(changed.write())
        described = describe(header)
        assert described.skeleton().module is not None
        assert tokenizer_assets(header, "llama", described.vocabulary)

    def test_unknown_architecture_is_named_with_those_that_are_known(self, changed):
        changed.fields["general.architecture"] = ("rwkv9", None)
        said = changed.said(UnsupportedError)
        assert "'rwkv9'" in said and "llama, " in said and "qwen3" in said

    def test_version_2_reads_the_same(self, small, tmp_path):
        assert small[4] == 3
        path = tmp_path / "old.gguf"
        path.write_bytes(small[:4] + b"\2" + small[5:])
        assert len(read_header(path).tensors) == 21

    def test_part_of_a_model_is_refused(self, changed):
        changed.fields["split.count"] = (3, [gguf.GGUFValueType.UINT16])
        assert "is one of 3 parts" in changed.said(UnsupportedError)

    def test_missing_tensors_are_listed_by_their_names_in_the_file(self, changed):
        del changed.tensors["blk.1.ffn_up.weight"], changed.tensors["output_norm.weight"]
        said = changed.said()
        assert "'blk.1.ffn_up.weight'" in said and "'output_norm.weight'" in said

    def test_misshapen_tensor(self, changed):
        data, kind = changed.tensors["blk.0.attn_v.weight"]
        changed.tensors["blk.0.attn_v.weight"] = (data[:64], kind)
        assert "'blk.0.attn_v.weight' is [64, 256], the configuration wants [128, 256]" in changed.said()

    def test_tensor_without_a_place(self, changed):
        changed.tensors["blk.0.cross.weight"] = (np.zeros((4, 32), np.float32), gguf.GGMLQuantizationType.F32)
        assert "'blk.0.cross.weight': has no place in llama" in changed.said(UnsupportedError)

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("llama.embedding_length", 4096, "the settings want"),
            ("llama.block_count", 2**30, "declares 1,073,741,824 blocks, its tensors are of 2"),
            ("llama.block_count", 0, "is 0, not a positive integer"),
            ("llama.attention.head_count", 10**6, "the settings want"),
            ("llama.attention.head_count_kv", 3, "the settings want"),
            ("llama.feed_forward_length", 2**31 - 1, "the settings want"),
            ("llama.attention.key_length", 63, "the settings want"),
        ],
    )
    def test_settings_that_the_tensors_deny(self, changed, key, value, said):
        changed.fields[key] = (value, [gguf.GGUFValueType.UINT32])
        assert said in changed.said()

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
    def test_settings_that_are_no_positive_number(self, changed, value):
        changed.fields["llama.rope.freq_base"] = (value, [gguf.GGUFValueType.FLOAT32])
        assert "not a positive number" in changed.said()

    def test_missing_setting(self, changed):
        del changed.fields["llama.context_length"]
        assert "'llama.context_length': is missing" in changed.said()

    def test_unknown_rotary_scaling(self, changed):
        changed.fields["llama.rope.scaling.type"] = ("longrope", [gguf.GGUFValueType.STRING])
        assert "'longrope'" in changed.said(UnsupportedError)

    def test_tokenizer_with_more_tokens_than_the_embedding(self, changed):
        tokens, types = changed.fields["tokenizer.ggml.tokens"]
        changed.fields["tokenizer.ggml.tokens"] = ([*tokens, "one more"], types)
        assert "has 97 tokens, the model's embedding 96 rows" in changed.said()

    def test_special_token_outside_the_vocabulary(self, changed):
        changed.fields["tokenizer.ggml.eos_token_id"] = (5000, [gguf.GGUFValueType.UINT32])
        assert "eos_token_id 5000, of 96 tokens" in changed.said()

    def test_merge_that_is_no_pair(self, changed):
        types = changed.fields["tokenizer.ggml.merges"][1]
        changed.fields["tokenizer.ggml.merges"] = (["a b c"], types)
        assert "merge that is no pair" in changed.said()

    def test_token_types_of_another_count(self, changed):
        types = changed.fields["tokenizer.ggml.token_type"][1]
        changed.fields["tokenizer.ggml.token_type"] = ([1, 1], types)
        assert "96 tokens, but 2 token_type" in changed.said()

    def test_tokenizer_of_an_unknown_kind_is_left_out_with_a_note(self, changed):
        changed.fields["tokenizer.ggml.pre"] = ("brandnew", [gguf.GGUFValueType.STRING])
        program = load(changed.write()).program
        assert "'brandnew'" in program.source["note"]
        assert "tokenizer/tokenizer.json" not in program.assets


def test_every_truncation_is_refused_at_once(small, tmp_path):
    path = tmp_path / "cut.gguf"
    start = time.process_time()
    for length in [*range(0, 4000, 7), *range(4000, len(small), 9973)]:
        path.write_bytes(small[:length])
        with pytest.raises(ModelError):
            read_header(path)
    assert time.process_time() - start < 30


def outcome(path: Path) -> None:
    """Everything up to the export; anything but a CompileError escapes."""
    with suppress(CompileError):
        header = read_header(path)
        described = describe(header)
        tokenizer_assets(header, described.name, described.vocabulary)
        described.skeleton()


@settings(max_examples=300, deadline=10_000, suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 2**32))
def test_damaged_bytes_are_refused_or_described(number, small, tmp_path_factory):
    chosen = random.Random(number)
    data, head = bytearray(small), 4500
    for _ in range(chosen.choice((1, 1, 2, 8))):
        at = chosen.randrange(head)
        width = chosen.choice((1, 1, 4, 8))
        power = (1 << chosen.randrange(8 * width)).to_bytes(width, "little")
        data[at : at + width] = chosen.choice((chosen.randbytes(width), bytes(width), b"\xff" * width, power))
    if chosen.random() < 0.2:
        at = chosen.randrange(head)
        del data[at : at + chosen.choice((1, 8, 100))]
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        outcome(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200e6
