"""Activations whose channels differ in size evened out, before kernels round them to 8 bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant, constant_tensor
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Program
from ...compiler.reference import Array
from ..base import NoMatch, Note, Pass, PassContext, PassResult, decline, skip
from ..moments import Moments

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")

_LIMIT = 30.0
"""Greatest and, inverted, least factor of a channel."""


@dataclass(frozen=True)
class SmoothActivations(Pass):
    """Move the size of channels from a normalised activation into the weights that read it.

    Kernels of 8-bit products round each block of activations by its greatest: one large channel costs its
    neighbours their precision. A norm's scale is divided, and the weights' columns are multiplied, by the
    channels' measured root mean square to the power ``alpha``: the same result, and for SmolLM2's query,
    key and value a quarter of the rounding error. Source: SmoothQuant, arXiv 2211.10438.
    """

    name: ClassVar[str] = "smooth-activations"
    alpha: float = 0.5

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every norm whose channels were measured; entries that share weights stay sharing them."""
        hits: list[Note] = []
        declined: list[Note] = []
        work = _Work(context.moments or {}, self.alpha)
        for model in program.entries.values():
            for node in tuple(model.graph):
                if node.op_type not in NORMS or node.domain != "":
                    continue
                try:
                    hits.append(Note(str(node.name), work.smooth(node)))
                except NoMatch as left:
                    if left.reason:
                        declined.append(Note(str(node.name), left.reason))
        return PassResult(len(hits), tuple(hits), tuple(declined))


@dataclass(slots=True)
class _Work:
    """``scaled``: weights with their factors, by weight and norm, for entries to share."""

    moments: Moments
    alpha: float
    scaled: dict[tuple[int, str], tuple[ir.TensorProtocol, ir.TensorProtocol]] = field(default_factory=dict)

    def smooth(self, node: ir.Node) -> str:
        """Even out the channels of one norm."""
        output, norms = node.outputs[0], [v for v in node.inputs[1:] if v is not None]
        name = str(output.name)
        if node.metadata_props.get(MARK):
            skip()
        moment = self.moments.get(name)
        if moment is None:
            skip()
        size = moment.channels
        arrays = [constant(value) for value in norms]
        if not arrays or any(a is None or a.shape != size.shape for a in arrays):
            skip()
        if any(value.dtype != ir.DataType.FLOAT for value in norms) or output.is_graph_output():
            skip()
        weights = _weights(output, len(size))
        factors = _factors(size, self.alpha)
        at = Rewriter(node)
        for index, array in enumerate(arrays, 1):
            assert array is not None
            divided = at.const((array / factors).astype(np.float32), f"{norms[index - 1].name}.smooth")
            node.replace_input_with(node.inputs.index(norms[index - 1]), divided)
        for value, turned in weights.items():
            value.const_value = self._scaled(value, factors, turned, name)  # other contents, the same name
        node.metadata_props[MARK] = "1"
        return f"{len(size)} channels evened out by {factors.min():.2g} to {factors.max():.2g}"

    def _scaled(self, value: ir.Value, factors: Array, turned: bool, name: str) -> ir.TensorProtocol:
        tensor = constant_tensor(value)
        assert tensor is not None
        key = id(tensor), name
        if key not in self.scaled:
            wide = factors[:, None] if turned else factors
            lazy = ir.LazyTensor(
                lambda: ir.Tensor((tensor.numpy() * wide).astype(np.float32)),
                dtype=ir.DataType.FLOAT,
                shape=ir.Shape(tensor.shape.numpy()),
                name=tensor.name,
            )
            self.scaled[key] = tensor, lazy
        return self.scaled[key][1]


MARK = "miaotui.smooth_activations"
"""Marks norms that were evened out: doing it twice would move what was measured before."""


def _weights(value: ir.Value, channels: int) -> dict[ir.Value, bool]:
    """The weights that are multiplied with ``value``, and whether their rows are the channels.

    Raises: NoMatch unless nothing else reads the value or the weights.
    """
    found: dict[ir.Value, bool] = {}
    for usage in value.uses():
        node = usage.node
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") and node.domain == "" else None
        if weight is None or usage.idx != 0 or node.attributes.get_int("transA", 0) != 0:
            decline(f"{node.op_type} reads it too")
        turned = node.op_type == "MatMul" or node.attributes.get_int("transB", 0) == 0
        turn = weight.producer()
        if node.op_type == "MatMul" and turn is not None and turn.op_type == "Transpose":
            inner = turn.inputs[0]
            if inner is None or tuple(turn.attributes.get_ints("perm", (1, 0))) != (1, 0):
                decline("a weight is computed")
            if len(weight.uses()) > 1:
                decline(f"{inner.name} is read elsewhere too")
            weight, turned = inner, False
        tensor = constant_tensor(weight)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
            decline("a weight is no constant matrix of float32")
        if tensor.shape.numpy()[0 if turned else 1] != channels:
            decline("a weight has other channels")
        if len(weight.uses()) > 1 or weight.is_graph_output():
            decline(f"{weight.name} is read elsewhere too")
        found[weight] = turned
    return found or skip()


def _factors(size: Array, alpha: float) -> Array:
    """What each channel is divided by, 1 in the geometric mean."""
    root = np.maximum(size.astype(np.float64), 1e-9) ** alpha
    factors: Array = np.clip(root / np.exp(np.log(root).mean()), 1 / _LIMIT, _LIMIT)
    return factors
