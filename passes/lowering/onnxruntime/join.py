"""Products of blocked weights that read one activation, side by side: query, key and value; gate and up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ....compiler.ir.provenance import add_passes
from ....compiler.ir.quantized import BlockedWeight, blocked_weight, emit_blocked
from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import Program
from ...base import NoMatch, Note, Pass, PassContext, PassResult, decline, import_domains
from .nbits import DTYPES


@dataclass(frozen=True)
class JoinBlocked(Pass):
    """Join products with blocked weights that read the same activation into one, and split its result.

    The kernel rounds its activations anew for every product, and one row of them is so little work that the
    nodes themselves count: 6 % of a token of SmolLM2 in 4 bits. Rows of weights are put below each other,
    nothing is rounded again. Products with weights of float32 gain nothing by it (see ``fuse-qkv``).
    """

    name: ClassVar[str] = "join-blocked"

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every activation that several such products read; entries share the joined weights."""
        hits: list[Note] = []
        declined: list[Note] = []
        joined: dict[tuple[int, ...], tuple[list[BlockedWeight], BlockedWeight]] = {}
        for model in program.entries.values():
            for layers in _groups(model.graph):
                name = str(layers[0].node.name)
                try:
                    at, text = _join(layers, joined)
                except NoMatch as left:
                    declined.append(Note(name, left.reason))
                    continue
                hits.append(Note(name, text))
                for made in at.made:
                    add_passes(made, [self.name])
        import_domains(program)
        return PassResult(len(hits), tuple(hits), tuple(declined))


@dataclass(frozen=True, slots=True)
class _Layer:
    node: ir.Node
    weight: BlockedWeight
    name: str


def _groups(graph: ir.Graph) -> list[list[_Layer]]:
    """Blocked products by the activation they read, those that are alone left out."""
    found: dict[ir.Value, list[_Layer]] = {}
    for node in graph:
        if node.op_type != "MatMul" or node.domain != "" or node.inputs[0] is None:
            continue
        turn = None if node.inputs[1] is None else node.inputs[1].producer()
        if turn is None or turn.op_type != "Transpose" or turn.inputs[0] is None:
            continue
        weight = blocked_weight(turn.inputs[0])
        alone = len(turn.outputs[0].uses()) == 1 == len(turn.inputs[0].uses())
        if weight is not None and alone and tuple(turn.attributes.get_ints("perm", (1, 0))) == (1, 0):
            found.setdefault(node.inputs[0], []).append(_Layer(node, weight, str(turn.inputs[0].name)))
    return [layers for layers in found.values() if len(layers) > 1]


def _join(
    layers: Sequence[_Layer], joined: dict[tuple[int, ...], tuple[list[BlockedWeight], BlockedWeight]]
) -> tuple[Rewriter, str]:
    first, x = layers[0], layers[0].node.inputs[0]
    weights = [layer.weight for layer in layers]
    if len({_form(weight) for weight in weights}) > 1:
        decline("the weights differ in bits, blocks, zero points or offsets")
    if first.weight.data.dtype not in DTYPES:
        decline(f"there is no kernel for weights of {first.weight.data.dtype}")
    if any(layer.node.outputs[0].is_graph_output() for layer in layers):
        decline("one of them is an output of the model")
    if x is None or x.shape is None or len(x.shape) < 2:
        decline("the activation's rank is not known")
    key = tuple(id(weight.data) for weight in weights)
    if key not in joined:  # the parts are held too: an id is a tensor's own only while it lives
        joined[key] = weights, _below_each_other(weights)
    whole = joined[key][1]

    at = Rewriter(first.node)
    rows = [weight.shape[0] for weight in weights]
    turned = at.op("Transpose", emit_blocked(whole, f"{first.name}.joined", at), perm=(1, 0))
    turned.type, turned.shape = ir.TensorType(whole.scale.dtype), ir.Shape([whole.shape[1], sum(rows)])
    wide = at.op("MatMul", x, turned)
    wide.type, wide.shape = x.type, ir.Shape([*list(x.shape)[:-1], sum(rows)])
    parts = at.ops("Split", wide, at.const(np.array(rows), "rows"), outputs=len(layers), axis=-1)
    for layer, part in zip(layers, parts, strict=True):
        part.type, part.shape = x.type, ir.Shape([*list(x.shape)[:-1], layer.weight.shape[0]])
        at.replace(layer.node.outputs[0], part)
    return at, f"one product of {' + '.join(map(str, rows))} rows"


def _form(weight: BlockedWeight) -> tuple[object, ...]:
    none = weight.zero_point is None, weight.offset is None
    return weight.data.dtype, weight.scale.dtype, weight.block, weight.shape[1], *none


def _below_each_other(weights: Sequence[BlockedWeight]) -> BlockedWeight:
    """The weights' rows as one weight, put together when they are read."""
    first = weights[0]
    data, scale = (_stacked([getattr(w, part) for w in weights]) for part in ("data", "scale"))
    zero = None if first.zero_point is None else _stacked([w.zero_point for w in weights])
    offset = None if first.offset is None else _stacked([w.offset for w in weights])
    return BlockedWeight(data, scale, zero, offset, first.block)


def _stacked(tensors: Sequence[ir.TensorProtocol | None]) -> ir.LazyTensor:
    found = [tensor for tensor in tensors if tensor is not None]
    rows = sum(tensor.shape.numpy()[0] for tensor in found)
    dtype = found[0].dtype
    return ir.LazyTensor(
        lambda: ir.Tensor(np.concatenate([tensor.numpy() for tensor in found]), dtype=dtype),
        dtype=dtype,
        shape=ir.Shape([rows, *found[0].shape.numpy()[1:]]),
    )
