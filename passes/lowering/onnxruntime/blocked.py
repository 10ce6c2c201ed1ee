"""Products with and look-ups in blocked quantized weights, in ONNX Runtime's kernels for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.constants import is_constant
from ....compiler.ir.provenance import add_passes
from ....compiler.ir.quantized import BlockedWeight, blocked_weight
from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import Program
from ...base import NoMatch, Note, Pass, PassContext, PassResult, decline, import_domains, skip
from ...logits import is_logits
from ..views import shape_constant
from .heads import number
from .nbits import DTYPES, NBits, nbits

INT8_PRODUCTS = 4
"""accuracy_level of kernels that round each block of 32 activations to 8 bits and add up integers."""

AS_THEY_ARE = 0
"""accuracy_level that says nothing: activations keep their type."""


@dataclass(frozen=True)
class UseBlockKernels(Pass):
    """Multiply with blocked weights in MatMulNBits, look rows up in GatherBlockQuantized.

    Weights are repacked, never rounded again. What an offset per block adds is a product of its own, of the
    activations' sums per block: float zero points, which could express it, make the kernel 15 times slower.
    On CUDA activations are multiplied as they are, and a bias is added apart: not all kernels there take one.

    ``accuracy``: MatMulNBits' accuracy_level on the CPU; 4 multiplies 8-bit integers, 1 float32.
    ``two_parts``: there, a language model's output layer of 8 bits takes its activations as what 8 bits hold
    and the rest, two rows in one product: the rounding there makes up a quarter of SmolLM2's divergence, and
    the second row takes 9 % of that product's time, which is that of reading the weight.
    """

    name: ClassVar[str] = "block-kernels"
    accuracy: int = INT8_PRODUCTS
    two_parts: bool = True

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every MatMul, Gemm and Gather that reads a blocked weight; entries share the repacked tensors."""
        hits: list[Note] = []
        declined: list[Note] = []
        packed: dict[int, tuple[BlockedWeight, NBits]] = {}
        device = context.target.device
        accuracy = self.accuracy if device == "cpu" else AS_THEY_ARE
        finest = self.two_parts and accuracy == INT8_PRODUCTS and program.decoding is not None
        for model in program.entries.values():
            work = _Work(packed, device, accuracy, finest)
            for node in tuple(model.graph):
                if node.op_type not in ("MatMul", "Gemm", "Gather") or node.domain != "":
                    continue
                try:
                    text, at = work.look_up(node) if node.op_type == "Gather" else work.multiply(node)
                except NoMatch as left:
                    if left.reason:
                        declined.append(Note(str(node.name), left.reason))
                    continue
                hits.append(Note(str(node.name), text))
                for made in at.made:
                    add_passes(made, [self.name])
        import_domains(program)
        return PassResult(len(hits), tuple(hits), tuple(declined))


@dataclass(slots=True)
class _Work:
    """The rewrites in one graph. ``sums``: block sums of activations, by activation and block."""

    packed: dict[int, tuple[BlockedWeight, NBits]]
    device: str
    accuracy: int
    two_parts: bool
    sums: dict[tuple[ir.Value, int], ir.Value] = field(default_factory=dict)
    stored: dict[int, ir.Value] = field(default_factory=dict)

    def repacked(self, value: ir.Value | None) -> tuple[NBits, str]:
        """The weight that ``value`` computes, and its name. Raises: NoMatch."""
        weight = blocked_weight(value)
        if weight is None or value is None:
            skip()
        if weight.data.dtype not in DTYPES:
            decline(f"there is no kernel for weights of {weight.data.dtype}")
        held = self.packed.get(id(weight.data))
        if held is None:  # the weight is held too: an id is a tensor's own only while it lives
            held = self.packed[id(weight.data)] = weight, nbits(weight)
        if why := held[1].refusal(self.device):
            decline(why)
        return held[1], _name(value)

    def constant(self, at: Rewriter, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """``tensor`` as an initializer, one for all its readers."""
        if id(tensor) not in self.stored:
            self.stored[id(tensor)] = at.const(tensor, name)
        return self.stored[id(tensor)]

    def multiply(self, node: ir.Node) -> tuple[str, Rewriter]:
        """Swap MatMul or Gemm, and a bias behind it, for MatMulNBits."""
        value, x = _weight(node)
        weight, name = self.repacked(value)
        if x is None or x.dtype != weight.scale.dtype or x.shape is None or len(x.shape) < 2:
            decline("the activations are not known to be of the scales' type and two or more dimensions")
        rows, columns = weight.shape
        bias, last = _bias(node, rows)
        at = Rewriter(last.producer() or node)
        codes, scale = (
            self.constant(at, weight.codes, name),
            self.constant(at, weight.scale, f"{name}.scale"),
        )
        twice = self.two_parts and weight.bits == 8 and len(x.shape) == 3 and is_logits(node.outputs[0])
        inputs = [_in_two_parts(at, x, weight) if twice else x, codes, scale]
        zero = None if weight.zero is None else self.constant(at, weight.zero, f"{name}.zero")
        inner = None if weight.shift is not None or twice or self.device == "cuda" else bias
        given: list[ir.Value | None] = [*inputs, zero, None, inner]
        while given[-1] is None:
            given.pop()
        product = at.op(
            "MatMulNBits",
            *given,
            domain="com.microsoft",
            K=columns,
            N=rows,
            bits=weight.bits,
            block_size=weight.block,
            accuracy_level=self.accuracy,
        )
        if twice:
            halves = at.ops("Split", product, outputs=2, axis=0, num_outputs=2)
            for half in halves:
                half.type, half.shape = x.type, ir.Shape([*list(x.shape)[:-1], rows])
            product = at.op("Add", *halves)
        product.type, product.shape = x.type, ir.Shape([*list(x.shape)[:-1], rows])
        terms = [product]
        if weight.shift is not None:
            terms.append(self._shifted(at, x, self.constant(at, weight.shift, f"{name}.shift"), weight))
        if bias is not inner and bias is not None:
            terms.append(bias)
        if len(terms) > 1:
            product = at.op("Add" if len(terms) == 2 else "Sum", *terms)
        at.replace(last, product)
        more = (", offsets apart" if weight.shift is not None else "") + (", in two parts" if twice else "")
        return f"{rows} x {columns} weight of {weight.bits} bits in blocks of {weight.block}{more}", at

    def _shifted(self, at: Rewriter, x: ir.Value, shift: ir.Value, weight: NBits) -> ir.Value:
        """What the offsets add: each block's sum of ``x`` times its offset."""
        assert x.shape is not None
        case = x, weight.block
        leading, blocks = list(x.shape)[:-1], weight.shape[1] // weight.block
        if case not in self.sums:
            target = [0] * len(leading) + [blocks, weight.block]
            cut = at.op("Reshape", x, shape_constant(at, target))
            cut.type, cut.shape = x.type, ir.Shape([*leading, blocks, weight.block])
            total = at.op("ReduceSum", cut, shape_constant(at, [-1]), keepdims=0)
            total.type, total.shape = x.type, ir.Shape([*leading, blocks])
            self.sums[case] = total
        shifted = at.op("MatMul", self.sums[case], shift)
        shifted.type, shifted.shape = x.type, ir.Shape([*leading, weight.shape[0]])
        return shifted

    def look_up(self, node: ir.Node) -> tuple[str, Rewriter]:
        """Swap Gather of rows for GatherBlockQuantized."""
        at = Rewriter(node)
        weight, name = self.repacked(node.inputs[0])
        ids, output = node.inputs[1], node.outputs[0]
        if node.attributes.get_int("axis", 0) not in (0, -2):
            decline("it gathers columns of a blocked weight")
        rows, columns = weight.shape
        given = [self.constant(at, weight.table, f"{name}.rows"), ids]
        given.append(self.constant(at, weight.scale, f"{name}.scale"))
        if weight.zero is not None:
            given.append(self.constant(at, weight.zero, f"{name}.zero"))
        found = at.op(
            "GatherBlockQuantized",
            *given,
            domain="com.microsoft",
            bits=weight.bits,
            block_size=weight.block,
            gather_axis=0,
            quantize_axis=1,
        )
        found.type, found.shape = output.type, output.shape
        if weight.shift is not None:
            found = self._moved(at, found, ids, weight, name)
        at.replace(output, found)
        return f"rows of a {rows} x {columns} table of {weight.bits} bits", at

    def _moved(
        self, at: Rewriter, found: ir.Value, ids: ir.Value | None, weight: NBits, name: str
    ) -> ir.Value:
        """The rows with their offsets added block by block."""
        if ids is None or ids.shape is None or weight.shift is None:
            decline("the rank of the indices is not known")
        leading, blocks = list(ids.shape), weight.shape[1] // weight.block
        table = self.constant(at, weight.shift, f"{name}.shift")
        offsets = at.op("Gather", table, ids, axis=1)  # [blocks, *ids]
        rank = len(leading)
        turned = at.op("Transpose", offsets, perm=[*range(1, rank + 1), 0])
        wide = at.op("Unsqueeze", turned, shape_constant(at, [-1]))
        cut = at.op("Reshape", found, shape_constant(at, [0] * rank + [blocks, weight.block]))
        cut.type, cut.shape = found.type, ir.Shape([*leading, blocks, weight.block])
        moved = at.op("Add", cut, wide)
        return at.op("Reshape", moved, shape_constant(at, [0] * rank + [weight.shape[1]]))


def _in_two_parts(at: Rewriter, x: ir.Value, weight: NBits) -> ir.Value:
    """[2 * batch, tokens, columns]: ``x`` as the kernel rounds it, then what it loses by it."""
    assert x.shape is not None and x.dtype is not None
    blocks = weight.shape[1] // weight.block
    cut = at.op("Reshape", x, shape_constant(at, [0, 0, blocks, weight.block]))
    most = at.op("ReduceMax", at.op("Abs", cut), shape_constant(at, [-1]), keepdims=1)
    step = at.op("Mul", most, number(at, "one_127th", 1 / 127, x))
    step = at.op("Max", step, number(at, "tiny", 1e-30, x))
    coarse = at.op("Mul", at.op("Round", at.op("Div", cut, step)), step)
    both = at.op("Concat", coarse, at.op("Sub", cut, coarse), axis=0)
    return at.op("Reshape", both, shape_constant(at, [0, 0, weight.shape[1]]))


def _weight(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """The value whose rows are multiplied with, or looked up in; and the activations."""
    if node.op_type == "Gather":
        return node.inputs[0], None
    x, value = node.inputs[:2]
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if factors != [1, 1] or node.attributes.get_int("transA", 0) != 0:
        return None, x
    if node.attributes.get_int("transB", 0) != 0:
        return value, x
    turn = None if value is None else value.producer()
    if turn is None or turn.op_type != "Transpose" or turn.domain != "":
        return None, x
    return turn.inputs[0] if tuple(turn.attributes.get_ints("perm", (1, 0))) == (1, 0) else None, x


def _bias(node: ir.Node, rows: int) -> tuple[ir.Value | None, ir.Value]:
    """A bias of one value per row that is added to the product and nothing else, and the sum."""
    output = node.outputs[0]
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and (bias.shape is None or list(bias.shape) != [rows]):
            decline("its bias is not one value per column")
        return bias, output
    uses = output.uses()
    add = next(iter(uses)).node if len(uses) == 1 and not output.is_graph_output() else None
    if add is None or add.op_type != "Add" or add.domain != "":
        return None, output
    other = next((v for v in add.inputs if v is not output), None)
    if other is None or not is_constant(other) or other.shape is None or list(other.shape) != [rows]:
        return None, output
    return other, add.outputs[0]


def _name(value: ir.Value) -> str:
    """What the weight is called: the name of its data without the suffix."""
    node = value.producer()
    while node is not None and node.op_type != "DequantizeLinear" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    data = None if node is None else node.inputs[0]
    return str(value.name if data is None else data.name).removesuffix(".data")
