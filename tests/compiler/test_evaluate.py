"""Reference evaluation: standard and dialect operators, taps, weights, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import InputError, UnsupportedError
from miaotui.compiler.ir.builder import BOOL, INT64, Builder
from miaotui.compiler.ir.evaluate import evaluate


def affine() -> ir.Model:
    b = Builder()
    x = b.input("x", ("n", 2))
    product = b.op("MatMul", x, b.weight("w", [[1.0, 2.0], [3.0, 4.0]]), name="product")
    b.output(b.op("BiasGelu", product, b.weight("b", [10.0, 20.0]), domain="com.microsoft", name="y"))
    return b.model()


def test_standard_and_dialect_operators() -> None:
    y = evaluate(affine(), {"x": np.ones((1, 2), np.float32)})
    np.testing.assert_allclose(y["y"], [[14.0, 26.0]], rtol=1e-6)


def test_taps_give_intermediate_values() -> None:
    results = evaluate(affine(), {"x": np.ones((1, 2), np.float32)}, taps=["product"])
    np.testing.assert_array_equal(results["product"], [[4.0, 6.0]])


def test_wrong_inputs_and_taps_are_all_reported() -> None:
    with pytest.raises(InputError) as caught:
        evaluate(affine(), {"z": np.ones(1)}, taps=["nowhere"])
    assert len(caught.value.problems) == 3


def test_operators_without_semantics_are_all_reported() -> None:
    b = Builder()
    x = b.input("x", (1,))
    b.output(b.op("One", b.op("Two", x, domain="acme"), domain="acme"), "y")
    with pytest.raises(UnsupportedError) as caught:
        evaluate(b.model(infer=False), {"x": np.ones(1)})
    assert len(caught.value.problems) == 2


def test_dialect_operators_inside_branches_see_outer_values() -> None:
    b = Builder()
    x, c = b.input("x", (2,)), b.input("c", (), BOOL)
    w = b.weight("w", [2.0, 3.0])
    bodies = []
    for op, domain in (("Mul", ""), ("BiasGelu", "com.microsoft")):
        inner = Builder()
        inner.output(inner.op(op, x, w, domain=domain, name=f"{op}_out"))
        bodies.append(inner.graph)
    b.graph.opset_imports["com.microsoft"] = 1
    b.output(b.op("If", c, then_branch=bodies[0], else_branch=bodies[1], name="y"))
    model = b.model()
    x = np.asarray([10.0, 10.0], np.float32)
    np.testing.assert_allclose(evaluate(model, {"x": x, "c": np.asarray(True)})["y"], [20, 30])
    np.testing.assert_allclose(evaluate(model, {"x": x, "c": np.asarray(False)})["y"], [12, 13])


def test_external_weights_are_read_where_they_lie(tmp_path: Path) -> None:
    data = np.arange(2048, dtype=np.float32).reshape(2, 1024)
    (tmp_path / "w.bin").write_bytes(data.tobytes())
    b = Builder()
    tensor = ir.ExternalTensor(
        "w.bin", 0, data.nbytes, ir.DataType.FLOAT, shape=ir.Shape(data.shape), name="w", base_dir=tmp_path
    )
    w = ir.Value(name="w", const_value=tensor)
    b.graph.register_initializer(w)
    b.output(b.op("Gather", w, b.input("i", (1,), INT64), name="y"))
    model = b.model()
    assert w.const_value is tensor
    np.testing.assert_array_equal(evaluate(model, {"i": np.asarray([1])})["y"], data[1:])
    assert w.const_value is tensor


def test_gather_elements_works_beyond_64_rows() -> None:
    b = Builder()
    b.output(b.op("GatherElements", b.input("x", (1, 100)), b.input("i", (1, 3), INT64), axis=1, name="y"))
    x = np.arange(100, dtype=np.float32)[None]
    np.testing.assert_array_equal(
        evaluate(b.model(), {"x": x, "i": np.asarray([[99, -1, 0]])})["y"], [[99, 99, 0]]
    )


def test_an_omitted_output_is_not_the_value_of_omitted_inputs() -> None:
    b = Builder()
    x = b.input("x", (1, 2, 4))
    y, *between, total = b.ops(
        "SkipLayerNormalization", x, x, b.weight("g", np.ones(4)), outputs=4, domain="com.microsoft"
    )
    for value in between:
        value.name = ""
    b.output(b.op("Clip", total, None, b.weight("top", np.asarray(1.0)), name="clipped"))
    b.output(y)
    results = evaluate(b.model(), {"x": np.full((1, 2, 4), -3, np.float32)})
    np.testing.assert_array_equal(results["clipped"], np.full((1, 2, 4), -6))
