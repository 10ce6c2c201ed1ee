"""Every invariant the verifier holds, broken once."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import InternalError
from miaotui.compiler.ir.builder import BOOL, Builder
from miaotui.compiler.ir.verify import problems, verify
from miaotui.compiler.program import Program


def chain() -> ir.Model:
    """x -> MatMul(w) -> Relu -> y."""
    b = Builder()
    x = b.input("x", ("batch", 4))
    y = b.op("Relu", b.op("MatMul", x, b.weight("w", np.ones((4, 2))), name="product"), name="y")
    b.output(y)
    return b.model()


def branches() -> ir.Model:
    """If(c) {x + x} else {x}, where both branches read x from outside."""
    b = Builder()
    x, c = b.input("x", (2,)), b.input("c", (), BOOL)
    bodies = []
    for op, operands in (("Add", (x, x)), ("Identity", (x,))):
        inner = Builder()
        inner.output(inner.op(op, *operands, name=f"{op}_out"))
        bodies.append(inner.graph)
    b.output(b.op("If", c, then_branch=bodies[0], else_branch=bodies[1], name="y"))
    return b.model()


def node(model: ir.Model, name: str) -> ir.Node:
    return next(n for n in model.graph.all_nodes() if n.name == name)


def facts(model: ir.Model) -> str:
    return "\n".join(map(str, problems(model)))


@pytest.mark.parametrize("make", [chain, branches])
def test_a_good_model_has_no_problems(make: Callable[[], ir.Model]) -> None:
    assert facts(make()) == ""


def unknown_operator(m: ir.Model) -> None:
    node(m, "y").op_type = "Rleu"


def missing_domain(m: ir.Model) -> None:
    node(m, "y").domain = "acme"


def too_many_inputs(m: ir.Model) -> None:
    y = node(m, "y")
    y.resize_inputs(2)
    y.replace_input_with(1, m.graph.inputs[0])


def required_input_left_out(m: ir.Model) -> None:
    node(m, "product").replace_input_with(1, None)


def unknown_attribute(m: ir.Model) -> None:
    node(m, "y").attributes["axis"] = ir.AttrInt64("axis", 1)


def attribute_of_wrong_type(m: ir.Model) -> None:
    y = node(m, "y")
    y.op_type = "Softmax"
    y.attributes["axis"] = ir.AttrFloat32("axis", 1.0)


def required_attribute_missing(m: ir.Model) -> None:
    node(m, "y").op_type = "Cast"


def dtype_the_operator_refuses(m: ir.Model) -> None:
    y = node(m, "y")
    y.op_type = "And"
    y.resize_inputs(2)
    y.replace_input_with(1, y.inputs[0])


def mixed_dtypes(m: ir.Model) -> None:
    m.graph.inputs[0].type = ir.TensorType(ir.DataType.DOUBLE)


def output_dtype_contradicts(m: ir.Model) -> None:
    y = node(m, "y")
    y.op_type = "Cast"
    y.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.INT64))


def output_shape_contradicts(m: ir.Model) -> None:
    node(m, "y").outputs[0].shape = ir.Shape(["batch", 3])


def rank_contradicts(m: ir.Model) -> None:
    node(m, "y").outputs[0].shape = ir.Shape([2])


def operands_do_not_fit(m: ir.Model) -> None:
    m.graph.inputs[0].shape = ir.Shape(["batch", 5])


def used_before_produced(m: ir.Model) -> None:
    product = node(m, "product")
    m.graph.remove(product)
    m.graph.append(product)


def cycle(m: ir.Model) -> None:
    node(m, "product").replace_input_with(0, node(m, "y").outputs[0])


def value_from_nowhere(m: ir.Model) -> None:
    node(m, "y").replace_input_with(0, ir.val("ghost", ir.DataType.FLOAT, [2]))


def value_of_removed_node(m: ir.Model) -> None:
    m.graph.remove(node(m, "product"))


def use_by_removed_node(m: ir.Model) -> None:
    extra = ir.node("Neg", [m.graph.inputs[0]])
    assert extra.graph is None


def duplicate_value_name(m: ir.Model) -> None:
    node(m, "y").outputs[0].name = "x"


def duplicate_node_name(m: ir.Model) -> None:
    node(m, "product").name = "y"


def initializer_shape_contradicts(m: ir.Model) -> None:
    m.graph.initializers["w"].shape = ir.Shape([4, 3])


def initializer_dtype_contradicts(m: ir.Model) -> None:
    m.graph.initializers["w"].type = ir.TensorType(ir.DataType.DOUBLE)


def initializer_without_data(m: ir.Model) -> None:
    m.graph.initializers["w"].const_value = None


def output_produced_by_nothing(m: ir.Model) -> None:
    m.graph.outputs.append(ir.val("z", ir.DataType.FLOAT, [1]))


def output_twice(m: ir.Model) -> None:
    m.graph.outputs.append(m.graph.outputs[0])


BROKEN = [
    (unknown_operator, "node 'y' (Rleu): no such operator in ai.onnx opset 23"),
    (missing_domain, "domain 'acme' is not among the model's opset imports"),
    (too_many_inputs, "has 2 inputs, wants 1"),
    (required_input_left_out, "leaves out required input 1 (B)"),
    (unknown_attribute, "has no attribute 'axis'"),
    (attribute_of_wrong_type, "attribute 'axis' is FLOAT, wants INT"),
    (required_attribute_missing, "lacks required attribute 'to'"),
    (dtype_the_operator_refuses, "which T does not allow"),
    (mixed_dtypes, "of the same type T is tensor(double)"),
    (output_dtype_contradicts, "is FLOAT, inference says INT64"),
    (output_shape_contradicts, "output 'y' is [batch,3], inference says [batch,2]"),
    (rank_contradicts, "output 'y' is [2], inference says [batch,2]"),
    (operands_do_not_fit, "node 'product' (MatMul)"),
    (used_before_produced, "('product') is used before it is produced"),
    (cycle, "is cyclic: y -> product -> y"),
    (value_from_nowhere, "('ghost') is produced by nothing in scope"),
    (value_of_removed_node, "('product') is produced by nothing in scope"),
    (use_by_removed_node, "(Neg), which is in no graph"),
    (duplicate_value_name, "value name 'x' is already taken"),
    (duplicate_node_name, "shares its name with another node"),
    (initializer_shape_contradicts, "is declared [4,3], its data is [4, 2]"),
    (initializer_dtype_contradicts, "is declared DOUBLE, its data is FLOAT"),
    (initializer_without_data, "has no data"),
    (output_produced_by_nothing, "graph output 'z': is produced by nothing"),
    (output_twice, "is an output twice"),
]


@pytest.mark.parametrize(("harm", "fact"), BROKEN, ids=lambda v: v.__name__ if callable(v) else "")
def test_names_the_broken_invariant(harm: Callable[[ir.Model], None], fact: str) -> None:
    model = chain()
    harm(model)
    assert fact in facts(model)


def test_sees_into_subgraphs() -> None:
    model = branches()
    node(model, "Add_out").op_type = "Adds"
    assert "node 'Add_out' (Adds): no such operator" in facts(model)


def test_a_subgraph_may_not_read_a_sibling_branch() -> None:
    model = branches()
    node(model, "Identity_out").replace_input_with(0, node(model, "Add_out").outputs[0])
    assert "is produced by nothing in scope" in facts(model)


def test_a_name_that_hides_the_outer_value_a_subgraph_reads() -> None:
    model = branches()
    body = node(model, "y").attributes["then_branch"].as_graph()
    add = body[0]
    hiding = ir.node("Neg", [model.graph.inputs[0]], name="hiding")
    body.insert_before(add, hiding)
    hiding.outputs[0].name = "x"
    assert "is not what this name means in its scope" in facts(model)


def test_opaque_operators_are_allowed() -> None:
    b = Builder()
    b.output(b.op("Anything", b.input("x", (2,)), domain="acme", whatever=3, name="y"))
    y = b.graph.outputs[0]
    y.type = ir.TensorType(ir.DataType.FLOAT)
    assert facts(b.model()) == ""


def test_dialect_operators_are_checked() -> None:
    b = Builder()
    b.output(b.op("BiasGelu", b.input("x", (2,)), domain="com.microsoft", name="y"))
    assert "has 1 inputs, wants 2" in facts(b.model())


def test_functions_are_checked() -> None:
    inner = Builder()
    x = inner.input("x", None)
    inner.output(inner.op("Relu", x, x, name="bad"))
    model = chain()
    function = ir.Function("local", "f", graph=inner.graph, attributes=[])
    model.functions[function.identifier()] = function
    assert "node 'bad' (Relu): has 2 inputs" in facts(model)


def test_the_error_names_the_pass_and_lists_the_problems() -> None:
    model = chain()
    unknown_operator(model)
    with pytest.raises(InternalError, match=r"after pass fuse-qkv: .*\n.*no such operator"):
        verify(Program({"main": model}), after="fuse-qkv")


def test_a_thousand_nodes_take_less_than_a_second() -> None:
    b = Builder()
    value = b.input("x", ("batch", 4))
    axes, shape = b.weight("axes", np.asarray([0])), b.weight("shape", np.asarray([1, 4]))
    for _ in range(330):
        value = b.op("Add", value, b.op("Expand", b.op("Gather", value, axes, axis=1), shape))
    b.output(value, "y")
    model = b.model()
    start = time.process_time()
    assert facts(model) == ""
    assert time.process_time() - start < 1.0  # 0.15 s on an idle core
