"""Reading a manifest: whatever is in it, it is the same manifest or an ArtifactError."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miaotui.compiler.artifact import check
from miaotui.compiler.errors import ArtifactError
from miaotui.compiler.jsonable import from_json, to_json
from miaotui.compiler.manifest import Certificate, Entry, Manifest, PassRecord, Variant, _hash
from miaotui.compiler.program import TensorSpec
from support.folders import write_folder

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.sampled_from(["../x", "nan", "float32"]),
    st.just([]),
    st.just({}),
)


@functools.cache
def text() -> str:
    with TemporaryDirectory() as folder:
        write_folder(Path(folder, "m"))
        return check(Path(folder, "m")).dumps()


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of the JSON tree."""
    keys = list(data) if isinstance(data, dict) else list(range(len(data))) if isinstance(data, list) else []
    return [(data, key) for key in keys] + [place for key in keys for place in places(data[key])]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_under_a_valid_hash_is_read_or_refused(data: st.DataObject) -> None:
    tree = json.loads(text())
    del tree["sha256"]
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(tree)))
        if data.draw(st.booleans()) or isinstance(container, list):
            container[key] = data.draw(LEAVES)
        else:
            del container[key]
    try:
        manifest = Manifest.loads(json.dumps({**tree, "sha256": _hash(tree)}), "manifest.json")
    except ArtifactError:
        return
    again = Manifest.loads(manifest.dumps(), "manifest.json")
    assert again.dumps() == manifest.dumps()  # as text: a field may be NaN, which equals nothing


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.binary(max_size=4))
def test_any_change_of_the_text_is_refused(place: int, new: bytes) -> None:
    raw = text().encode()
    at = place % len(raw)
    changed = raw[:at] + new + raw[at + len(new) :]
    if json.loads(raw) == _parsed(changed):
        return
    with pytest.raises(ArtifactError):
        Manifest.loads(changed.decode("latin-1"), "manifest.json")


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("kind", "data", "fact"),
    [
        (Entry, {"inputs": []}, "has no outputs"),
        (Entry, {"inputs": [], "outputs": [], "x": 1, "y": 2}, "has unknown x, y"),
        (TensorSpec, {"name": "x", "dtype": "float99", "shape": []}, "dtype: expected a dtype"),
        (TensorSpec, {"name": "x", "dtype": "int8", "shape": [1, 1.5]}, r"shape\[1\]: expected int"),
        (PassRecord, {"name": "p", "seconds": 10**400}, "seconds: expected float"),
        (PassRecord, {"name": "p", "changed": True}, "changed: expected int, got True"),
        (PassRecord, {"name": "p", "seconds": "1"}, "seconds: expected float"),
        (Certificate, {"reference": "r", "ok": 1, "tolerance": 0, "outputs": {}}, "ok: expected bool"),
        (Variant, {"role": "x", "target": "", "backend": "", "entries": {}}, "'source' or 'optimized'"),
    ],
)
def test_wrong_field_is_named(kind: type[Any], data: Any, fact: str) -> None:
    with pytest.raises(ArtifactError, match=f"manifest.json.*{fact}"):
        from_json(kind, data, "manifest.json")


def test_defaults_may_be_left_out_and_integers_stand_for_floats() -> None:
    assert from_json(PassRecord, {"name": "p", "seconds": 1}, "m") == PassRecord("p", seconds=1.0)
    assert from_json(PassRecord, copy.deepcopy(to_json(PassRecord("p", hits=("a",)))), "m").hits == ("a",)
