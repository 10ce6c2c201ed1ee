"""Emitted C of every generic operator against the reference, for sizes from none to many, any workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miaotui.compiler.codegen.native.toolchain import Toolchain
from miaotui.compiler.errors import UnsupportedError
from miaotui.compiler.ir.builder import BOOL, FLOAT, INT64
from miaotui.compiler.ir.evaluate import evaluate
from support.native_cases import Case, Library
from support.native_graphs import (
    elementwise,
    graph_of,
    indexed,
    integers,
    movement,
    products,
    random_trees,
    reductions,
    rotaries,
)  # fmt: skip

Array = np.ndarray[Any, Any]
SIZES = ({"m": 3, "n": 5}, {"m": 1, "n": 1}, {"m": 2, "n": 37}, {"m": 4, "n": 0}, {"m": 70, "n": 130})
_BOUND = {"Pow": 2e-5, "Tan": 2e-5, "Reduce": 3e-5, "MatMul": 3e-5, "Gemm": 1e-5}
"""Relative and absolute, where it is not a few units in the last place; sums depend on their order."""


def _inputs(model: ir.Model, sizes: Mapping[str, int], random: np.random.Generator) -> dict[str, Array]:
    made = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape or ()]
        assert value.dtype is not None
        if value.dtype == FLOAT:
            array: Any = random.standard_normal(shape) * 2
        elif value.dtype == BOOL:
            array = random.random(shape) < 0.5
        else:
            array = random.integers(-9, 10, shape)
        made[str(value.name)] = np.asarray(array).astype(value.dtype.numpy())
    return made


def _check(library: Library, which: int, inputs: Mapping[str, Array], label: str) -> None:
    model = library.cases[which].model
    wanted = evaluate(model, inputs)
    bound = next((b for name, b in _BOUND.items() if label.startswith(name)), 2e-6)
    for workers in (1, 3):
        got = library.run(which, inputs, workers)
        for name, array in wanted.items():
            assert got[name].dtype == array.dtype, label
            np.testing.assert_allclose(got[name], array, rtol=bound, atol=bound, err_msg=label)


def _domain(label: str, inputs: dict[str, Array]) -> dict[str, Array]:
    """Inputs for which the operator has a value that the reference agrees on."""
    name = label.split()[0]
    if name in ("Log", "Sqrt") or (name == "Pow" and inputs["x0"].dtype == np.float32):
        inputs["x0"] = np.abs(inputs["x0"]) + np.float32(0.1)
    if name in ("Asin", "Acos", "Atanh"):
        inputs["x0"] = np.tanh(inputs["x0"]) * np.float32(0.99)
    if name == "Acosh":
        inputs["x0"] = np.abs(inputs["x0"]) + np.float32(1.1)
    if name in ("Div", "Mod") and inputs["x1"].dtype.kind == "i":
        inputs["x1"] = np.where(inputs["x1"] == 0, 3, inputs["x1"]).astype(inputs["x1"].dtype)
    if name == "Pow" and inputs["x1"].dtype.kind == "i":
        inputs["x1"] = np.abs(inputs["x1"]).astype(inputs["x1"].dtype)
    return inputs


def cases() -> list[tuple[str, ir.Model]]:
    return [
        *elementwise(),
        *movement().items(),
        *reductions().items(),
        *products().items(),
        *rotaries().items(),
        *random_trees(),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, list[str]]:
    named = cases()
    return Library([Case(model) for _, model in named], tmp_path_factory.mktemp("emit")), [
        n for n, _ in named
    ]


LABELS = [label for label, _ in cases()]


@pytest.mark.parametrize("which", range(len(LABELS)), ids=LABELS)
def test_equals_the_reference(library: tuple[Library, list[str]], which: int) -> None:
    made, labels = library
    random = np.random.default_rng(which)
    for sizes in SIZES:
        if sizes["n"] == 0 and labels[which].split()[0] in (
            "ReduceMax",
            "ReduceMin",
            "ReduceMean",
            "LogSoftmax",
        ):
            continue
        inputs = _domain(labels[which], _inputs(made.cases[which].model, sizes, random))
        _check(made, which, inputs, f"{labels[which]} {sizes}")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_trees_at_any_size(library: tuple[Library, list[str]], data: st.DataObject) -> None:
    made, labels = library
    which = data.draw(st.sampled_from([i for i, label in enumerate(labels) if label.startswith("tree")]))
    sizes = {"m": data.draw(st.integers(0, 9)), "n": data.draw(st.integers(0, 70))}
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    _check(made, which, _inputs(made.cases[which].model, sizes, random), labels[which])


def test_what_c_leaves_open_has_numpys_value(library: tuple[Library, list[str]]) -> None:
    made, labels = library
    edges = np.array([[np.nan, np.inf, -np.inf, 1e30, -1e30, 2.0**63, -(2.0**63), 0.9, -0.9]], np.float32)
    for target, least in (("INT64", -(2**63)), ("INT32", -(2**31))):
        got = made.run(labels.index(f"Cast FLOAT {target}"), {"x": edges})["y"]
        assert got.tolist() == [[least] * 7 + [0, 0]]
    low = np.array([[[-(2**63), 5, 7]] * 3], np.int64)
    which = labels.index("Div INT64 {}")
    assert made.run(which, {"x0": low, "x1": np.array([-1, 0, 2], np.int64)})["y"].tolist() == [
        [[-(2**63), 0, 3]] * 3
    ]
    which = labels.index("Neg INT64 {}")
    assert made.run(which, {"x0": low})["y"].tolist() == [[[-(2**63), -5, -7]] * 3]


# ---- indices


@pytest.fixture(scope="module")
def index_library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, list[str]]:
    models = indexed()
    return Library([Case(m) for m in models.values()], tmp_path_factory.mktemp("index")), list(models)


@pytest.mark.parametrize("which", range(len(indexed())), ids=list(indexed()))
def test_indices_pick_and_are_checked(index_library: tuple[Library, list[str]], which: int) -> None:
    library, _ = index_library
    random = np.random.default_rng(which)
    for sizes in SIZES:
        inputs = _inputs(library.cases[which].model, sizes, random)
        if "i" in inputs:
            inputs["i"] = random.integers(-7, 7, inputs["i"].shape).astype(inputs["i"].dtype)
        _check(library, which, inputs, f"indices {sizes}")
        if "i" in inputs and inputs["i"].size and sizes["n"]:
            for outside in (7, -8, 2**31 - 1, -(2**31)):
                inputs["i"].reshape(-1)[-1] = outside
                with pytest.raises(ValueError, match="an index is outside of its axis"):
                    library.run(which, inputs, 2)


# ---- what can't be emitted


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            graph_of(
                lambda b: b.op(
                    "Add", b.input("x", (2,), ir.DataType.DOUBLE), b.input("z", (2,), ir.DataType.DOUBLE)
                )
            ),
            "it computes in double",
        ),
        (graph_of(lambda b: b.op("Softmax", b.input("x", (2,), ir.DataType.DOUBLE))), "it is not of floats"),
        (
            graph_of(lambda b: b.op("ReduceSum", b.input("x", ("m", 2)), b.input("a", (1,), INT64))),
            "its axes are only known when run",
        ),
        (
            graph_of(lambda b: b.op("Pad", b.input("x", (4,)), integers(b, "p", [1, 1]), mode="reflect")),
            "it pads by 'reflect'",
        ),
        (graph_of(lambda b: b.op("NonZero", b.input("x", (4,)))), "it is not known"),
    ],
)
def test_declines_by_name(model: ir.Model, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        Case(model)


# ---- other compilers, sanitizers


@pytest.mark.slow
def test_clang_warns_of_nothing_and_computes_the_same(tmp_path: Path) -> None:
    """A fifth of all graphs: clang takes long over so many."""
    named = cases()[::5]
    zig = Toolchain((sys.executable, "-m", "ziglang", "cc"))
    library = Library([Case(model) for _, model in named], tmp_path, zig)
    for which, (label, model) in enumerate(named):
        inputs = _domain(label, _inputs(model, SIZES[0], np.random.default_rng(which)))
        _check(library, which, inputs, label)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="preloads gcc's libraries")
def test_nothing_is_read_or_written_outside_of_arrays() -> None:
    """This file again, its code compiled with the address and undefined-behaviour sanitizers."""
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(text.strip() for text in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "MIAOTUI_TEST_CFLAGS": "-fsanitize=address,undefined",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
