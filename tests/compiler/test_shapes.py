"""Shape inference: symbols are kept, sizes only become more precise, weights stay where they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import ModelError
from miaotui.compiler.ir.builder import BOOL, INT64, Builder
from miaotui.compiler.ir.shapes import infer_model_shapes, infer_shapes
from miaotui.compiler.program import Program


def shapes(model: ir.Model) -> dict[str, str]:
    return {str(v.name): str(v.shape) for node in model.graph.all_nodes() for v in node.outputs}


def test_symbols_travel_through_shape_arithmetic() -> None:
    b = Builder()
    x = b.input("x", ("batch", "sequence", 12))
    sizes = b.op("Shape", x)
    batch = b.op("Gather", sizes, b.weight("i", np.asarray([0])))
    target = b.op("Concat", batch, b.weight("rest", np.asarray([-1, 3, 4])), axis=0)
    b.output(b.op("Reshape", x, target, name="split"))
    b.output(b.op("Reshape", x, b.weight("keep", np.asarray([0, 0, 3, 4])), name="kept"))
    found = shapes(b.model())
    assert found["split"].startswith("[batch,") and found["split"].endswith(",3,4]")
    assert found["kept"] == "[batch,sequence,3,4]"


def test_sizes_are_followed_where_onnx_loses_them() -> None:
    """A position table cut to the sequence, broadcast, expanded and split into heads, as old exporters do."""
    b = Builder()
    x = b.input("x", ("batch", "sequence", 12))
    sizes = b.op("Shape", x)
    length = b.op("Gather", sizes, b.weight("one", np.asarray(1)))
    axis = b.weight("axis", np.asarray([0]))
    rows = b.op(
        "Slice",
        b.weight("table", np.ones((64, 12))),
        axis,
        b.op("Unsqueeze", length, axis),
        axis,
        name="rows",
    )
    h = b.op("Add", x, rows, name="h")
    b.output(
        b.op("Range", b.weight("zero", np.asarray(0)), length, b.weight("step", np.asarray(1)), name="range")
    )
    minus = b.op("ConstantOfShape", b.weight("three", np.asarray([3])), value=ir.tensor(np.asarray([-1])))
    wanted = b.op("Concat", b.op("Gather", sizes, axis), b.weight("rest", np.asarray([-1, 12])), axis=0)
    chosen = b.op("Where", b.op("Equal", wanted, minus), b.weight("ones", np.ones(3, np.int64)), wanted)
    b.output(b.op("Expand", b.weight("class", np.ones((1, 1, 12))), chosen, name="classes"))
    heads = b.op("Concat", b.op("Gather", sizes, axis), b.weight("split", np.asarray([-1, 3, 4])), axis=0)
    b.output(b.op("Reshape", h, heads, name="split_heads"))
    flat = b.op("Reshape", h, b.weight("flat", np.asarray([-1, 12])), name="rows_flat")
    b.output(b.op("Flatten", h, axis=2, name="flattened"))
    b.output(b.op("Neg", flat, name="y"))
    half = b.op(
        "Div", b.op("Gather", sizes, b.weight("last", np.asarray([2]))), b.weight("two", np.asarray([2]))
    )
    b.output(
        b.op(
            "Slice",
            h,
            half,
            b.weight("end", np.asarray([2**63 - 1])),
            b.weight("third", np.asarray([2])),
            name="half",
        )
    )
    found = shapes(b.model())
    assert found["rows"] == "[Min(64, sequence),12]"
    assert found["h"] == "[batch,sequence,12]"
    assert found["range"] == "[sequence]"
    assert found["classes"] == "[batch,1,12]"
    assert found["split_heads"] == "[batch,sequence,3,4]"
    assert found["rows_flat"] == found["flattened"] == found["y"] == "[batch*sequence,12]"
    assert found["half"] == "[batch,sequence,6]"


def test_products_of_sizes_are_named_and_floats_are_not_taken_for_integers() -> None:
    b = Builder()
    x = b.input("x", ("batch", "sequence", 7))
    sizes, one, two = (b.op("Shape", x), *(b.weight(f"n{n}", np.asarray([n])) for n in (1, 2)))
    batch, seven = (b.op("Gather", sizes, b.weight(f"at{n}", np.asarray([n]))) for n in (0, 2))
    twice = b.op("Mul", batch, two)
    b.output(b.op("Expand", one, twice, name="twice"))
    b.output(b.op("Expand", one, b.op("Div", b.op("Mul", twice, two), two), name="exact"))
    b.output(b.op("Expand", one, b.op("ReduceProd", sizes, keepdims=1), name="all"))
    half = b.op("Div", b.op("Cast", seven, to=1), b.op("Cast", two, to=1))
    doubled = b.op("Cast", b.op("Mul", half, b.op("Cast", two, to=1)), to=INT64)
    b.output(b.op("Expand", one, doubled, name="seven"))
    found = shapes(b.model())
    assert found["twice"] == found["exact"] == "[2*batch]" and found["all"] == "[7*batch*sequence]"
    assert found["seven"].startswith("[unk__") or found["seven"] == "[7]"


def test_sizes_that_may_differ_are_not_taken_for_equal() -> None:
    b = Builder()
    x, y = b.input("x", ("n", 4)), b.input("y", ("m", 4))
    b.output(b.op("Add", x, y, name="sum"))
    b.output(b.op("Slice", x, b.weight("a", np.asarray([0])), b.weight("b", np.asarray([8])),
                  b.weight("c", np.asarray([0])), name="head"))  # fmt: skip
    found = shapes(b.model())
    assert found["sum"].startswith("[unk__") and found["head"].startswith("[unk__")
    assert found["sum"] != found["head"]


def test_recorded_names_and_sizes_survive() -> None:
    b = Builder()
    x = b.input("x", ("batch", None))
    y = b.op("Relu", x, name="y")
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["rows", 7])
    b.output(b.op("Neg", y, name="z"))
    assert shapes(b.model()) == {"y": "[rows,7]", "z": "[rows,7]"}


def test_a_symbol_becomes_a_size_but_never_the_other_way_round() -> None:
    b = Builder()
    y = b.op("Relu", b.input("x", (2, "n")), name="y")
    y.shape = ir.Shape(["rows", 3])
    b.output(y)
    assert shapes(b.model()) == {"y": "[2,3]"}


def test_inference_is_stable() -> None:
    b = Builder()
    x = b.input("x", ("n", 4))
    b.output(b.op("Add", b.op("NonZero", x, name="found"), b.weight("one", np.asarray(1)), name="y"))
    model = b.model()
    first = shapes(model)
    infer_model_shapes(model)
    assert shapes(model) == first
    assert first["found"] == first["y"]


def test_dialect_operators_between_standard_ones() -> None:
    b = Builder()
    h = b.op("Relu", b.input("x", ("batch", "seq", 8)))
    gamma = b.weight("gamma", np.ones(8))
    y, _, _, total = b.ops(
        "SkipLayerNormalization", h, h, gamma, outputs=4, domain="com.microsoft", name="skip"
    )
    again = b.op("BiasGelu", b.op("MatMul", y, b.weight("w", np.ones((8, 5)))), b.weight("b", np.ones(5)),
                 domain="com.microsoft", name="gelu")  # fmt: skip
    b.output(b.op("Neg", again, name="z"))
    b.output(total, "total")
    model = b.model()
    found = shapes(model)
    assert found["z"] == "[batch,seq,5]" and found["total"] == "[batch,seq,8]"
    assert all(v.dtype == ir.DataType.FLOAT for n in model.graph for v in n.outputs)


def test_branches_are_inferred() -> None:
    b = Builder()
    x, c = b.input("x", ("n", 2)), b.input("c", (), BOOL)
    bodies = []
    for name in ("a", "b"):
        inner = Builder()
        inner.output(inner.op("Abs", inner.op("Neg", x, name=f"neg_{name}"), name=name))
        bodies.append(inner.graph)
    b.output(b.op("If", c, then_branch=bodies[0], else_branch=bodies[1], name="y"))
    assert shapes(b.model()) == {"y": "[n,2]", "neg_a": "[n,2]", "a": "[n,2]", "neg_b": "[n,2]", "b": "[n,2]"}


def test_one_failing_node_does_not_stop_the_others() -> None:
    b = Builder()
    x = b.input("x", (2, 3))
    b.output(b.op("MatMul", x, x, name="bad"))
    b.output(b.op("Acme", x, domain="acme", name="opaque"))
    b.output(b.op("Relu", x, name="good"))
    found = shapes(b.model())
    assert found["good"] == "[2,3]" and found["bad"] == found["opaque"] == "None"


def test_weights_are_not_loaded() -> None:
    def load() -> ir.TensorProtocol:
        raise AssertionError("was loaded")

    b = Builder()
    lazy = ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=ir.Shape([4096, 4096]), name="w")
    w = ir.Value(name="w", const_value=lazy)
    b.graph.register_initializer(w)
    b.output(b.op("MatMul", b.input("x", ("n", 4096)), w, name="y"))
    model = b.model()
    assert shapes(model) == {"y": "[n,4096]"} and w.const_value is lazy
    assert (w.dtype, str(w.shape)) == (ir.DataType.FLOAT, "[4096,4096]")


def test_what_inference_can_not_walk_is_a_model_error() -> None:
    inner = Builder()
    inner.output(inner.op("f", inner.input("a", None), domain="local"))
    b = Builder()
    b.output(b.op("f", b.input("x", (1,)), domain="local", name="y"))
    model = b.model(infer=False)
    function = ir.Function("local", "f", graph=inner.graph, attributes=[])
    model.functions[function.identifier()] = function
    with pytest.raises(ModelError, match="shape inference failed: Cycle detected"):
        infer_shapes(Program({"main": model}))


def test_every_entry_is_inferred() -> None:
    models = {}
    for name in ("prefill", "decode"):
        b = Builder()
        b.output(b.op("Cast", b.input("x", ("n",), INT64), to=1, name="y"))
        models[name] = b.model(infer=False)
    infer_shapes(Program(models))
    assert all(shapes(m) == {"y": "[n]"} for m in models.values())
