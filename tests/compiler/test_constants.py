"""What counts as a constant, and that reading one loads no more than asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.constants import constant, is_constant, scalar


def test_reads_initializers() -> None:
    w = Builder().weight("w", np.arange(6.0).reshape(2, 3))
    assert is_constant(w)
    np.testing.assert_array_equal(constant(w), np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [1, 2]}, np.asarray([1, 2])),
        ({"value_float": 0.5}, np.float32(0.5)),
        ({"value_floats": [0.5]}, np.asarray([0.5], np.float32)),
        ({"value": ir.tensor(np.ones((2, 2), np.int32))}, np.ones((2, 2), np.int32)),
    ],
)
def test_reads_every_form_of_constant_node(attributes: dict[str, object], expected: np.ndarray) -> None:
    value = Builder().op("Constant", **attributes)
    array = constant(value)
    assert array is not None and array.dtype == expected.dtype
    np.testing.assert_array_equal(array, expected)


def test_an_initializer_the_caller_may_override_is_no_constant() -> None:
    b = Builder()
    w = b.weight("w", [1.0])
    b.graph.inputs.append(w)
    assert not is_constant(w) and constant(w) is None and scalar(w) is None


def test_an_omitted_input_and_a_computed_value_are_no_constants() -> None:
    b = Builder()
    assert constant(None) is None
    assert constant(b.op("Relu", b.weight("w", [1.0]))) is None


def test_large_tensors_are_not_read_unless_asked_for() -> None:
    def load() -> ir.TensorProtocol:
        raise AssertionError("was loaded")

    lazy = ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=ir.Shape([1 << 20]), name="w")
    value = ir.Value(name="w", const_value=lazy)
    Builder().graph.register_initializer(value)
    assert constant(value) is None
    with pytest.raises(AssertionError, match="was loaded"):
        constant(value, limit=None)


@pytest.mark.parametrize(
    ("array", "expected"),
    [(np.asarray(2.5, np.float16), 2.5), (np.asarray([[7]]), 7), (np.asarray(True), 1), (np.ones(2), None)],
)
def test_scalar_reads_one_element_of_any_rank(array: np.ndarray, expected: float | None) -> None:
    found = scalar(Builder().weight("w", array))
    assert found == expected and type(found) is type(expected)
