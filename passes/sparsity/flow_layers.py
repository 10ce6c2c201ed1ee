"""How units pass layers: elementwise operators, products, convolutions, norms, reductions."""

from __future__ import annotations

import onnx_ir as ir

from ...compiler.ir.constants import is_constant, is_widening
from ...compiler.ir.rewrite import Rewriter
from .flow import Blocked, Flow, Found, Rule, integers, rank, size
from .flow_attention import ATTENTION
from .flow_gathers import GATHERS
from .flow_moves import MOVES

X, W, BIAS, Y = 0, 1, 2, -1


def _aligned(node: ir.Node, flow: Flow) -> Found:
    """Inputs broadcast against each other: the same axis, counted from the last."""
    slots = [i for i, v in enumerate(node.inputs) if v is not None]
    yield from _same(node, flow, (Y, *slots))


def _same(node: ir.Node, flow: Flow, slots: tuple[int, ...], last: int = 0) -> Found:
    """The axes of ``slots`` in front of ``last`` (from the end) are the same, or of size one."""
    values = {slot: node.outputs[~slot] if slot < 0 else node.inputs[slot] for slot in slots}
    for slot, value in values.items():
        for axis, units in flow.at(node, slot).items():
            back = axis - rank(value)
            if back >= last and last:
                continue
            for other, there in values.items():
                if other != slot and there is not None and -back <= rank(there) and size(there, back) != 1:
                    yield other, back + rank(there), units


def _matmul(node: ir.Node, flow: Flow) -> Found:
    x, w = node.inputs[:2]
    if rank(x) < 2 or rank(w) < 2:
        raise Blocked(f"MatMul {node.name} multiplies a vector")
    yield from _product(node, flow, rank(x) - 1, rank(w) - 2, rank(x) - 2, rank(w) - 1)
    yield from _same(node, flow, (X, W, Y), last=-2)


def _gemm(node: ir.Node, flow: Flow) -> Found:
    a, b = (node.attributes.get_int(name, 0) for name in ("transA", "transB"))
    yield from _product(node, flow, 0 if a else 1, 1 if b else 0, 1 if a else 0, 0 if b else 1)
    if len(node.inputs) > BIAS and node.inputs[BIAS] is not None:
        yield from _same(node, flow, (BIAS, Y))


def _product(node: ir.Node, flow: Flow, inner_x: int, inner_w: int, row: int, column: int) -> Found:
    """A sum over ``inner_x`` of the first and ``inner_w`` of the second input; the other axes are kept."""
    y = rank(node.outputs[0])
    x_units, w_units, y_units = (flow.at(node, slot) for slot in (X, W, Y))
    for units in (
        found[inner] for found, inner in ((x_units, inner_x), (w_units, inner_w)) if inner in found
    ):
        if not _is_weight(node.inputs[W]):
            raise Blocked(f"{node.op_type} {node.name} sums over them, and both its inputs vary")
        flow.consumers[node] = None
        yield X, inner_x, units
        yield W, inner_w, units
    for slot, here, axis, there in ((X, x_units, row, y - 2), (W, w_units, column, y - 1)):
        if axis in here:
            yield Y, there, here[axis]
        if there in y_units:
            yield slot, axis, y_units[there]
    if (column in w_units or y - 1 in y_units) and _is_weight(node.inputs[W]):
        flow.producers[node] = None


def _is_weight(value: ir.Value | None) -> bool:
    """Whether it is constant, as it is, transposed or stored in fewer bits."""
    maker = None if value is None else value.producer()
    if maker is not None and (maker.op_type in ("Transpose", "DequantizeLinear") or is_widening(maker)):
        return _is_weight(maker.inputs[0])
    return is_constant(value)


def _conv(node: ir.Node, flow: Flow) -> Found:
    group = node.attributes.get_int("group", 1)
    if not is_constant(node.inputs[W]):
        raise Blocked(f"the weight of Conv {node.name} is computed")
    y = flow.at(node, Y)
    _no_other_axis(node, flow, (0, 1))
    for slot in (X, Y):
        if 0 in (units := flow.at(node, slot)):
            yield ~slot, 0, units[0]
    if group == 1:
        if 1 in (units := flow.at(node, X)):
            flow.consumers[node] = None
            yield W, 1, units[1]
    elif size(node.outputs[0], 1) == group == size(node.inputs[X] or node.outputs[0], 1):
        for slot, other in ((X, Y), (Y, X)):
            if 1 in (units := flow.at(node, slot)):
                yield other, 1, units[1]
    elif 1 in flow.at(node, X) or 1 in y:
        raise Blocked(f"Conv {node.name} has {group} groups")
    if 1 in y:
        flow.producers[node] = None
        yield W, 0, y[1]
        yield BIAS, 0, y[1]


def _cut_conv(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    if node.attributes.get_int("group", 1) > 1 and 1 in (units := flow.at(node, X)):
        node.attributes["group"] = ir.AttrInt64("group", len(flow.keeps(units[1])))


def _no_other_axis(node: ir.Node, flow: Flow, allowed: tuple[int, ...]) -> None:
    if any(axis not in allowed for slot in (X, Y) for axis in flow.at(node, slot)):
        raise Blocked(f"{node.op_type} {node.name} runs along them")


def _channelwise(node: ir.Node, flow: Flow) -> Found:
    """Pooling and batch norm: along all but the first two axes, or channel by channel."""
    _no_other_axis(node, flow, (0, 1))
    if len([o for o in node.outputs if o.uses() or o.is_graph_output()]) > 1:
        raise Blocked(f"{node.op_type} {node.name} has several outputs")
    for slot, other in ((X, Y), (Y, X)):
        for axis, units in flow.at(node, slot).items():
            yield other, axis, units
            if axis == 1:
                yield from ((scale, 0, units) for scale in range(1, len(node.inputs)))


def _norm(node: ir.Node, flow: Flow) -> Found:
    first = node.attributes.get_int("axis", -1) % rank(node.inputs[0])
    for slot, other in ((X, Y), (Y, X)):
        for axis, units in flow.at(node, slot).items():
            if axis >= first:
                raise Blocked(f"{node.op_type} {node.name} normalises over them")
            yield other, axis, units


def _softmax(node: ir.Node, flow: Flow) -> Found:
    along = node.attributes.get_int("axis", -1) % rank(node.inputs[0])
    for slot, other in ((X, Y), (Y, X)):
        for axis, units in flow.at(node, slot).items():
            if axis == along:
                raise Blocked(f"{node.op_type} {node.name} normalises over them")
            yield other, axis, units


def _reduce(node: ir.Node, flow: Flow) -> Found:
    x = rank(node.inputs[0])
    found = integers(node, 1)
    if found is None and node.attributes.get_int("noop_with_empty_axes", False):
        found = []
        gone = set()
    else:
        gone = {axis % x for axis in found} if found else set(range(x))
    kept = [axis for axis in range(x) if axis not in gone or node.attributes.get_int("keepdims", True)]
    for axis, units in flow.at(node, X).items():
        if axis in gone:
            raise Blocked(f"{node.op_type} {node.name} sums over them")
        yield Y, kept.index(axis), units
    for axis, units in flow.at(node, Y).items():
        yield X, kept[axis], units


def _shape(node: ir.Node, flow: Flow) -> Found:
    x = rank(node.inputs[0])
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", x)
    if any(axis in range(*slice(start, end).indices(x)) for axis in flow.at(node, X)):
        raise Blocked(f"Shape {node.name} counts them")
    yield from ()


ELEMENTWISE = (
    "Abs", "Add", "Cast", "Celu", "Clip", "Cos", "Div", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow",
    "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish",
    "Tanh", "ThresholdedRelu", "Where",
)  # fmt: skip

RULES = {
    **MOVES,
    **GATHERS,
    **dict.fromkeys(ELEMENTWISE, Rule(_aligned)),
    "MatMul": Rule(_matmul),
    "Gemm": Rule(_gemm),
    "Conv": Rule(_conv, _cut_conv),
    **dict.fromkeys(
        ("BatchNormalization", "GlobalAveragePool", "AveragePool", "MaxPool"), Rule(_channelwise)
    ),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), Rule(_norm)),
    **dict.fromkeys(("Softmax", "LogSoftmax"), Rule(_softmax)),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), Rule(_reduce)),
    "Shape": Rule(_shape),
    **ATTENTION,
}
"""By operator of the standard domain."""
