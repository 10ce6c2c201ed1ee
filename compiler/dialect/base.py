"""OpSchema: what the compiler knows of an operator that onnx.defs does not describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx_ir as ir

from ..reference import Array

MICROSOFT = "com.microsoft"
MIAOTUI = "miaotui"
"""Operators of our own, which every backend's lowering has to expand."""

Inferred: TypeAlias = "tuple[ir.DataType | None, ir.Shape | None]"
"""dtype and shape of one output; None where nothing is known."""

TRANSCENDENTAL = 8.0
"""Operations counted for exp, tanh, erf and the like."""
SOFTMAX = TRANSCENDENTAL + 5.0
"""Operations counted per score of a softmax: scale, maximum, difference, exp, sum, division."""
GELU = TRANSCENDENTAL + 2.0

StaticShapes: TypeAlias = "Sequence[tuple[int, ...] | None]"
Flops: TypeAlias = "Callable[[StaticShapes, StaticShapes, Mapping[str, Any]], float]"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A formal input or output: name, type variable, and whether it may be left out.

    >>> Parameter.parse("bias?:T")
    Parameter(name='bias', variable='T', optional=True)
    """

    name: str
    variable: str
    optional: bool = False

    @classmethod
    def parse(cls, text: str) -> Parameter:
        """``name:T``, ``name?:T``, or a concrete type: ``ids:tensor(int64)``."""
        name, _, variable = text.partition(":")
        return cls(name.rstrip("?"), variable or "T", name.endswith("?"))


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute's type and default; for an optional one, ``default=None`` is a meaning of its own."""

    kind: ir.AttributeType
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class OpSchema:
    """One operator: arity, attributes, shape inference, numpy reference and cost.

    ``infer(node)`` gives dtype and shape of each output from the recorded ones of the inputs.
    ``reference(*inputs, **attributes)`` takes arrays (None for omitted inputs) and attributes with
    defaults filled in, and gives a tuple with every output, None for outputs it does not compute.
    ``flops(inputs, outputs, attributes)`` counts floating-point operations from static shapes (None for
    omitted inputs and outputs); left out, an operator costs one per element of its first output.
    """

    name: str
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    infer: Callable[[ir.Node], Sequence[Inferred]]
    reference: Callable[..., tuple[Array | None, ...]]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    flops: Flops | None = None
    domain: str = MICROSOFT

    @property
    def min_inputs(self) -> int:
        """Inputs up to and including the last required one."""
        return max((i + 1 for i, p in enumerate(self.inputs) if not p.optional), default=0)

    @property
    def min_outputs(self) -> int:
        """Outputs up to and including the last required one."""
        return max((i + 1 for i, p in enumerate(self.outputs) if not p.optional), default=0)

    def attribute_values(self, node: ir.Node) -> dict[str, Any]:
        """The node's attributes, defaults filled in; absent ones without default are None."""
        values = {name: attribute.default for name, attribute in self.attributes.items()}
        values.update({a.name: a.value for a in node.attributes.values() if not a.is_ref()})
        return values


def parameters(text: str) -> tuple[Parameter, ...]:
    """Parameters from ``"input:T skip:T beta?:T"``."""
    return tuple(Parameter.parse(part) for part in text.split())


def integer(default: int | None = None, *, required: bool = False) -> Attribute:
    """An INT attribute."""
    return Attribute(ir.AttributeType.INT, default, required)


def number(default: float | None = None) -> Attribute:
    """A FLOAT attribute."""
    return Attribute(ir.AttributeType.FLOAT, default)


def text(default: str | None = None) -> Attribute:
    """A STRING attribute."""
    return Attribute(ir.AttributeType.STRING, default)


def integers() -> Attribute:
    """An INTS attribute."""
    return Attribute(ir.AttributeType.INTS)


def numbers() -> Attribute:
    """A FLOATS attribute."""
    return Attribute(ir.AttributeType.FLOATS)


def shape_of(node: ir.Node, index: int) -> ir.Shape | None:
    """Shape of the node's input, None if omitted or unknown."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else value.shape


def dtype_of(node: ir.Node, index: int) -> ir.DataType | None:
    """dtype of the node's input, None if omitted or unknown."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else value.dtype


def like_first(node: ir.Node) -> Sequence[Inferred]:
    """Inference of operators whose only output looks like the first input."""
    return ((dtype_of(node, 0), shape_of(node, 0)),)
