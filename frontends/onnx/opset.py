"""Raise a model's default-domain opset to the program's, one node at a time, inside the IR.

No protobuf is built and no weight is read, so the cost depends on the nodes alone and a weight file of any
size stays mapped. Most versions of an operator only add dtypes; those that changed its meaning or form are
in the table of adapters. The protobuf-based converters are not used: the C++ one loses node names and
subgraph scopes and aborts on malformed models.
"""

from __future__ import annotations

import onnx_ir as ir

from ...compiler.errors import Problem, UnsupportedError
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import OPSET
from .adapters import ADAPTERS, Adapter, Blocked
from .adapters_legacy import LEGACY

TABLE = {
    op: tuple(sorted([*ADAPTERS.get(op, ()), *LEGACY.get(op, ())], key=lambda step: step[0]))
    for op in {*ADAPTERS, *LEGACY}
}
"""Operator → its changes in the order of the opsets that made them, each with the adapter that crosses it."""

STUCK = frozenset({
    "GlobalLpPool", "MaxRoiPool", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike", "RoiAlign",
})  # fmt: skip
"""Operators whose opset-22 version only adds bfloat16, and has no kernel in ONNX Runtime: stop at 21."""

MAY_BLOCK = frozenset({"BatchNormalization", "Dropout", "Resize", "Upsample", *LEGACY})
"""Operators with an adapter that may give up."""

NEED_RANKS = frozenset({"Hardmax", "LogSoftmax", "Softmax", *LEGACY})
"""Operators with an adapter that asks for ranks."""


def needs_ranks(model: ir.Model) -> bool:
    """Whether raising ``model`` would be better or possible only with shapes that are not recorded yet."""
    return model.opset_imports.get("", OPSET) < 13 and any(
        value is not None and value.shape is None
        for node in _nodes(model)
        if node.op_type in NEED_RANKS
        for value in node.inputs
    )


def raise_opset(model: ir.Model, target: int = OPSET) -> str:
    """Bring every default-domain node of ``model`` to opset ``target`` in place; why, if it stays lower.

    A node may carry its own ``version`` (it came out of a function of another opset). Functions must have
    been inlined. When any node can't be raised the model is left at its opset, unchanged, and the text
    names those nodes.

    Raises: UnsupportedError if that leaves nodes of different opsets in one model.
    """
    current = model.opset_imports.get("", target)
    work = [(node, node.version or current) for node in _nodes(model) if node.domain == ""]
    newest = max([current, *(version for _, version in work)])
    stuck = sorted({node.op_type for node, _ in work if node.op_type in STUCK}) if newest < 22 else []
    target = max(21 if stuck else target, newest)
    # adapters edit in place: where one may be blocked, the model must stay whole
    atomic = any(node.op_type in MAY_BLOCK and _steps(node, version, target) for node, version in work)
    raised = model.clone() if atomic else model
    reasons = _adapt(raised, current, target)
    if reasons:
        if any(version != current for _, version in work):
            places = [Problem(*reason.split(": ", 1)) for reason in reasons]
            raise UnsupportedError.of(places)
        return f"kept opset {current}: " + "; ".join(dict.fromkeys(reasons))
    if raised is not model:
        model.graph = raised.graph
    for node in _nodes(model):
        node.version = None
    model.opset_imports[""] = target
    return f"opset {target}: no ONNX Runtime kernel of a newer {', '.join(stuck)}" if stuck else ""


def _adapt(model: ir.Model, current: int, target: int) -> list[str]:
    reasons = []
    for node in list(_nodes(model)):
        if node.domain != "":
            continue
        version = node.version or current
        if version < 6:
            node.attributes.pop("consumed_inputs", None)
        for _, adapter in _steps(node, version, target):
            try:
                adapter(node, Rewriter(node))
            except Blocked as blocked:
                reasons.append(f"node {node.name!r} ({node.op_type}-{version}): {blocked}")
            if node.graph is None:  # replaced by nodes in their newest form
                break
    return reasons


def _steps(node: ir.Node, version: int, target: int) -> list[tuple[int, Adapter]]:
    return [step for step in TABLE.get(node.op_type, ()) if version < step[0] <= target]


def _nodes(model: ir.Model) -> list[ir.Node]:
    return list(model.graph.all_nodes())
