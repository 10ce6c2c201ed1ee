"""The weight file: whatever is wrong with it, opening says so in a sentence and nothing faults."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miaotui.compiler.codegen.native.library import WEIGHTS
from miaotui.compiler.errors import ArtifactError
from miaotui.runtime.native import NativeRunner
from support import toy_native as toy

GOOD = toy.header() + toy.TABLE.tobytes()


def opened(path: Path) -> NativeRunner:
    model = toy.model(toy.built())
    return NativeRunner(type(model)(model.library, path, model.signature, model.entry), threads=1)


def written(folder: Path, data: bytes) -> Path:
    path = folder / WEIGHTS
    path.write_bytes(data)
    return path


CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "cut within its header": (GOOD[:63], "too short"),
    "cut behind its header": (GOOD[:64], "has 64 bytes, not the 96"),
    "cut by a byte": (GOOD[:-1], "has 95 bytes, not the 96"),
    "longer": (GOOD + b"\0", "has 97 bytes, not the 96"),
    "no magic": (b"GGUF\0\0\0\0" + GOOD[8:], "is no weight file"),
    "another version": (GOOD[:8] + b"\2" + GOOD[9:], "has version 2, this library reads 1"),
    "another model": (toy.header(fingerprint=b"x" * 32) + toy.TABLE.tobytes(), "of another model"),
    "another model's size": (toy.header(160) + bytes(96), "of another model"),
    "a size beyond all memory": (toy.header(2**64 - 1) + toy.TABLE.tobytes(), "not the 18446744073709551615"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_file_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    data, fact = CASES[name]
    with pytest.raises(ArtifactError, match=fact):
        opened(written(tmp_path, data))


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "is no file"),
        (lambda path: os.mkfifo(path), "is no file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None], fact: str) -> None:
    path = tmp_path / WEIGHTS
    make(path)
    with pytest.raises(ArtifactError, match=fact):
        opened(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_byte_of_the_header_can_be_changed_unnoticed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "weights"
    folder.mkdir(exist_ok=True)
    place = data.draw(st.integers(0, 63))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != GOOD[place]))
    changed = bytearray(GOOD)
    changed[place] = value
    with pytest.raises(ArtifactError):
        opened(written(folder, bytes(changed)))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_no_weight_file(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "weights"
    folder.mkdir(exist_ok=True)
    with pytest.raises(ArtifactError):
        opened(written(folder, data))


def test_the_right_file_is_read_where_it_lies(tmp_path: Path) -> None:
    with opened(written(tmp_path, GOOD)) as runner:
        y = runner.run({"x": np.ones(3, np.float32), "index": np.array([0, 7, 2])})["y"]
    assert y.tolist() == [2, 72, 22]


def test_an_open_model_outlives_its_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    with opened(path) as runner:
        path.unlink()
        assert runner.run({"x": np.ones(1, np.float32), "index": np.array([3])})["y"].tolist() == [32]
