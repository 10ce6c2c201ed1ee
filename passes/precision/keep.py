"""Which nodes must stay float32, and why: what 16 bits' range, a kernel or a constant demands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor, scalar
from ...compiler.ir.quantized import blocked_weight
from .half import FP16, MASKED, Format, loss
from .ranges import Ranges
from .slots import Slots, in_half, slots

MOVES = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Gather",
    "GatherElements", "GatherND", "Concat", "Expand", "Tile", "Identity", "Pad", "DepthToSpace",
    "SpaceToDepth", "ReverseSequence",
})  # fmt: skip
"""Operators that move data without computing: they follow their neighbours."""

BOUNDED = frozenset({
    "Sin", "Cos", "Tanh", "Sigmoid", "Erf", "Softmax", "HardSigmoid", "Not",
})  # fmt: skip
"""Operators whose results fit into float16 whatever comes in."""

_ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Clip", "Where", "Cast", "Sin", "Cos",
    "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round", "Mod", "Sign", "Sum", "Relu",
    "Tanh", "Sigmoid", "Trilu", "ReduceMax", "ReduceMin",
})  # fmt: skip
_FROM_INTEGERS = frozenset({"Cast", "Range", "ConstantOfShape", "EyeLike", "OneHot"})
_LARGE = frozenset({
    "Exp", "ReduceSumSquare", "ReduceProd", "ReduceSum", "ReduceL1", "CumSum", "CumProd", "Reciprocal",
})  # fmt: skip
_FP32 = frozenset({
    "Log", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "LpNormalization", "GlobalLpPool", "LpPool",
    "MeanVarianceNormalization", "Det", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial",
    "Bernoulli", "CastLike", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss",
    "NonMaxSuppression", "STFT", "DFT", "MelWeightMatrix", "LinearAttention",
})  # fmt: skip
_SPREADS = MOVES | frozenset({
    "Add", "Sub", "Mul", "Neg", "Abs", "Max", "Min", "Where", "Sum", "ReduceMean", "ReduceMax",
    "ReduceMin", "MatMul", "Gemm",
})  # fmt: skip
_COARSE = frozenset({"Softmax", "LogSoftmax", "ReduceMean", "Sin", "Cos", "Sqrt", "Mod"})
"""Operators that add up, or whose operands' last digits matter, where a number has 8 bits."""
_ADDS_UP = frozenset({"ReduceMean", "AveragePool", "GlobalAveragePool"})
_SQUARES = frozenset(
    {"LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"}
)
_UNKNOWN = 4096
"""Elements that are added up where a dimension is not known."""
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_SATURATES = {"Clip": (1, 2), "Max": None, "Min": None}
_SENSITIVE = {"Div": 1, "Log": 0, "Reciprocal": 0, "Sqrt": 0}


@dataclass(slots=True)
class Plan:
    """``kept``: nodes that stay float32 and why; ``slots``: nodes that turn; ``integers``: values computed
    from integers alone (positions, masks), and whether a mask constant went into them."""

    kept: dict[ir.Node, str] = field(default_factory=dict)
    slots: dict[ir.Node, Slots] = field(default_factory=dict)
    integers: dict[ir.Value, bool] = field(default_factory=dict)


_CONTAINERS = (ir.SequenceType, ir.OptionalType)


@dataclass(slots=True)
class Planner:
    """Decides for one model. ``supports`` is the backend's word, ``ranges`` measured activations by name."""

    opset: Callable[[ir.Node], int]
    supports: Callable[[ir.Node], str | None]
    ranges: Ranges
    limit: float
    keep: Sequence[str]
    keep_nodes: Sequence[str]
    form: Format = FP16
    plan: Plan = field(default_factory=Plan)
    _wide: set[ir.Value] = field(default_factory=set)

    def run(self, model: ir.Model) -> Plan:
        """Visit every node, producers first; then let moves follow their neighbours."""
        nodes = [node for graph in model.graphs() for node in graph]
        for node in nodes:
            if _has_float32(node):
                self._visit(node)
        for node in reversed(nodes):
            self._keep_operand(node)
        for node in (*nodes, *reversed(nodes)):
            self._follow(node)
        return self.plan

    def _visit(self, node: ir.Node) -> None:
        at = slots(node, self.opset(node), self.form.dtype)
        reason = self._reason(node, at)
        if reason:
            self.plan.kept[node] = reason
            self._spread(node)
        elif at is not None and at.inputs:
            self.plan.slots[node] = at

    def _reason(self, node: ir.Node, at: Slots | None) -> str:
        if node.op_type in self.keep or node.name in self.keep_nodes:
            return "kept by option"
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return "control flow hands its body's float32 interface on"
        if any(isinstance(v.type, _CONTAINERS) for v in (*node.inputs, *node.outputs) if v is not None):
            return "works on a sequence or optional of float32"
        if node.domain == "" and self.opset(node) < 13:
            return f"is of opset {self.opset(node)}, too old to be converted"
        if at is None:
            return f"nobody describes the types of {node.domain}.{node.op_type}"
        if self._from_integers(node):
            return "computed from integers: positions or a mask"
        if node.op_type == "Clip" and _feeds_casts_to_half(node):
            return f"guards the way into {self.form.name}"
        if node.domain == "" and node.op_type in _FP32 | _LARGE and blocked_weight(node.outputs[0]) is None:
            return f"{node.op_type} needs float32's range"
        if node.domain == "" and node.op_type in _COARSE and self.form.exact < FP16.exact:
            return f"{node.op_type} needs more than the 8 bits of a {self.form.name}"
        return (
            self._squares(node)
            or self._touches_wide(node)
            or self._measured(node, at)
            or self._accumulates(node)
            or self._constants(node, at)
            or self._unsupported(node, at)
        )

    def _from_integers(self, node: ir.Node) -> bool:
        """Extend the island of integer arithmetic in floats; in float16 it would be wrong or infinite."""
        outputs = [v for v in node.outputs if v.dtype == ir.DataType.FLOAT]
        floats = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT]
        varying = [v for v in floats if constant_tensor(v) is None]
        if not outputs or any(v not in self.plan.integers for v in varying):
            return False
        root = node.op_type in _FROM_INTEGERS and not varying and not _reads_half(node)
        if not root and not (varying and node.op_type in _ELEMENTWISE | MOVES | {"MatMul"}):
            return False
        tensors = [t for v in floats if (t := constant_tensor(v)) is not None]
        if any(t.size > 1 << 16 for t in tensors):
            return False
        mask = any(self.plan.integers.get(v, False) for v in varying)
        mask = mask or any((t.numpy() <= MASKED).any() for t in tensors if t.size < 4096)
        self.plan.integers.update(dict.fromkeys(outputs, mask))
        return True

    def _squares(self, node: ir.Node) -> str:
        if node.op_type == "Pow" and scalar(node.inputs[1]) not in (1.0, 0.5, -0.5):
            return "Pow needs float32's range"
        if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
            return "a square needs float32's range"
        if node.op_type == "Div" and constant_tensor(node.inputs[1]) is None:
            return "a computed divisor may be tiny"
        return ""

    def _touches_wide(self, node: ir.Node) -> str:
        wide = next((v for v in node.inputs if v is not None and v in self._wide), None)
        return f"reads {wide.name}, which needs float32's range" if wide is not None else ""

    def _spread(self, node: ir.Node) -> None:
        """Mark results of a kept node that float16 can't hold."""
        reads_wide = [v is not None and v in self._wide for v in node.inputs]
        produces = node.op_type in _LARGE or (node.op_type in {"Pow", "Mul"} and bool(self._squares(node)))
        spreads = any(reads_wide) and node.op_type in _SPREADS
        spreads |= node.op_type == "Div" and reads_wide == [True, False]
        for value in node.outputs:
            known = self.ranges.get(value.name or "")
            too_wide = self._excess(value) if known is not None else produces or spreads
            if too_wide and value not in self.plan.integers and value.dtype == ir.DataType.FLOAT:
                self._wide.add(value)

    def _measured(self, node: ir.Node, at: Slots) -> str:
        touched = [node.inputs[i] for i in at.inputs] + [node.outputs[i] for i in at.outputs]
        for value in touched:
            if value is not None and constant_tensor(value) is None and (excess := self._excess(value)):
                return excess
        if node.op_type == "Attention":
            return self._scores(node)
        return ""

    def _excess(self, value: ir.Value) -> str:
        known = self.ranges.get(value.name or "")
        if known is None or known == (0.0, 0.0):
            return ""
        low, high = known
        greatest = max(abs(high), abs(low) if low > MASKED else 0.0)
        if greatest > self.limit * self.form.greatest:
            return f"{value.name} reaches {greatest:.3g}, {self.form.name} ends at {self.form.greatest:g}"
        if 0 < greatest < self.form.least and low > MASKED:
            least = 6e-5 if self.form is FP16 else 1.2e-38
            return f"{value.name} is at most {greatest:.3g}, {self.form.name} loses digits below {least}"
        return ""

    def _accumulates(self, node: ir.Node) -> str:
        """Sums inside an operator that leave the range although its operands and result don't.

        Products add up in float32 wherever they are computed in 16 bits; norms do so by ``stash_type``.
        """
        x = node.inputs[0] if node.inputs else None
        maker = None if x is None else x.producer()
        if maker is not None and maker.op_type == "Cast" and x is not None and x.name not in self.ranges:
            x = maker.inputs[0]  # what is cast back to float32 was measured under its own name
        known = self.ranges.get(x.name or "") if x is not None else None
        if x is None or known is None or node.op_type not in _ADDS_UP | _SQUARES:
            return ""
        stash = node.attributes.get_int("stash_type", 1 if "Normalization" in node.op_type else 0)
        if stash == ir.DataType.FLOAT.value and node.op_type in ("LayerNormalization", "RMSNormalization"):
            return ""
        length = 1
        for dim, size in zip(x.shape or (), node.outputs[0].shape or (), strict=False):
            if dim != size or node.op_type in _SQUARES:
                length *= dim if isinstance(dim, int) else _UNKNOWN
        greatest = max(abs(known[0]), abs(known[1]))
        total = length * (greatest**2 if node.op_type in _SQUARES else greatest)
        if total <= self.form.greatest:
            return ""
        return f"its sums may reach {total:.3g}, {self.form.name} ends at {self.form.greatest:g}"

    def _scores(self, node: ir.Node) -> str:
        """Attention's own intermediate, bounded by Cauchy-Schwarz from the ranges of Q and K."""
        greatest = [
            max(map(abs, self.ranges.get(v.name or "", (0.0, 0.0)))) for v in node.inputs[:2] if v is not None
        ]
        q = node.inputs[0]
        heads = node.attributes.get("q_num_heads")
        width = q.shape[-1] if q is not None and q.shape is not None else None
        if len(greatest) < 2 or not isinstance(width, int):
            return ""
        size = width // int(heads.value) if heads is not None and len(q.shape or ()) == 3 else width  # type: ignore[union-attr]
        scale = node.attributes.get("scale")
        bound = greatest[0] * greatest[1] * size * (float(scale.value) if scale is not None else size**-0.5)
        if bound <= self.form.greatest:
            return ""
        return f"its scores may reach {bound:.3g}, {self.form.name} ends at {self.form.greatest:g}"

    def _constants(self, node: ir.Node, at: Slots) -> str:
        for index in at.inputs:
            tensor = constant_tensor(node.inputs[index])
            if tensor is None:
                continue
            places = _SATURATES.get(node.op_type, ())
            saturate = places is None or index in places
            divides = _SENSITIVE.get(node.op_type) == index
            why = loss(tensor, saturate=saturate, divides=divides, form=self.form)
            if why:
                return why
        return ""

    def _unsupported(self, node: ir.Node, at: Slots) -> str:
        version = self.opset(node)
        reason = self.supports(in_half(node, at, version, self.form.dtype))
        lowered_later = node.domain == "miaotui"
        return "" if reason is None or lowered_later else reason

    def _keep_operand(self, node: ir.Node) -> None:
        """Keep what makes a divisor or radicand: rounded to zero, it would turn a finite result into NaN."""
        index = _SENSITIVE.get(node.op_type) if node in self.plan.kept and node.domain == "" else None
        value = node.inputs[index] if index is not None else None
        producer = value.producer() if value is not None else None
        while producer is not None and producer in self.plan.slots:
            self._keep(producer, f"{node.op_type} '{node.name}' reads it, and it must not round to zero")
            first = producer.inputs[0] if producer.inputs else None
            producer = first.producer() if first is not None and producer.op_type in MOVES else None

    def _follow(self, node: ir.Node) -> None:
        """A move between float32 neighbours stays float32: that saves two casts."""
        at = self.plan.slots.get(node)
        if at is None or node.op_type not in MOVES:
            return
        producers = [
            v.producer()
            for i in at.inputs
            if (v := node.inputs[i]) is not None and constant_tensor(v) is None
        ]
        users = [user for i in at.outputs for user, _ in node.outputs[i].uses()]
        outward = any(node.outputs[i].is_graph_output() for i in at.outputs)
        from_single = all(p in self.plan.kept or p is None for p in producers)
        to_single = (users or outward) and all(user not in self.plan.slots for user in users)
        if from_single and to_single:
            self._keep(node, "lies between float32 nodes")

    def _keep(self, node: ir.Node, reason: str) -> None:
        del self.plan.slots[node]
        self.plan.kept[node] = reason


def bounded(value: ir.Value) -> bool:
    """Whether ``value`` fits into float16 by the operator that made it."""
    producer = value.producer()
    while (
        producer is not None
        and producer.op_type in MOVES
        and producer.inputs
        and producer.inputs[0] is not None
    ):
        producer = producer.inputs[0].producer()
    if producer is None:
        return False
    first = producer.inputs[0] if producer.inputs else None
    from_bool = producer.op_type == "Cast" and first is not None and first.dtype == ir.DataType.BOOL
    return producer.op_type in BOUNDED or from_bool


def _floats(node: ir.Node) -> Iterator[ir.Value]:
    yield from (v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == ir.DataType.FLOAT)


def _has_float32(node: ir.Node) -> bool:
    return next(_floats(node), None) is not None


def _feeds_casts_to_half(node: ir.Node) -> bool:
    users = [user for user, _ in node.outputs[0].uses()]
    return bool(users) and all(u.op_type == "Cast" and u.outputs[0].dtype in _HALVES for u in users)


def _reads_half(node: ir.Node) -> bool:
    return any(v is not None and v.dtype in _HALVES for v in node.inputs)
