"""Linear nodes as facts: what they read, and how to write them again with something changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import onnx_ir as ir

from ....compiler.dialect import MIAOTUI
from ....compiler.ir.rewrite import Rewriter


@dataclass(frozen=True, slots=True)
class Layer:
    """A Linear: ``activation(norm(x) @ weightᵀ + bias) + residual``; ``parts``: weights with their biases."""

    x: ir.Value
    parts: tuple[tuple[ir.Value, ir.Value | None], ...]
    norm: str = ""
    epsilon: float = 1e-5
    norm_scale: ir.Value | None = None
    norm_bias: ir.Value | None = None
    residual: ir.Value | None = None
    activation: str = ""
    gated: bool = False

    @classmethod
    def of(cls, node: ir.Node | None) -> Self | None:
        """The layer that ``node`` computes, None if it is no Linear."""
        if node is None or (node.domain, node.op_type) != (MIAOTUI, "Linear"):
            return None
        inputs = [*node.inputs, *[None] * (10 - len(node.inputs))]
        x, norm_scale, norm_bias, residual = inputs[:4]
        assert x is not None
        return cls(
            x,
            tuple((w, b) for w, b in zip(inputs[4::2], inputs[5::2], strict=True) if w is not None),
            node.attributes.get_string("norm", ""),
            node.attributes.get_float("epsilon", 1e-5),
            norm_scale,
            norm_bias,
            residual,
            node.attributes.get_string("activation", ""),
            bool(node.attributes.get_int("gated", 0)),
        )

    @classmethod
    def alone(cls, value: ir.Value | None) -> Self | None:
        """The layer that computes ``value`` for a single reader, None if it has others or is no Linear."""
        if value is None or value.is_graph_output() or len(value.uses()) != 1:
            return None
        return cls.of(value.producer())

    @property
    def rows(self) -> tuple[int, ...]:
        """Outputs of each weight."""
        return tuple(weight.shape.numpy()[0] for weight, _ in self.parts if weight.shape is not None)

    @property
    def width(self) -> int:
        """Size of the output's last axis."""
        return self.rows[0] if self.gated else sum(self.rows)

    def emit(self, at: Rewriter) -> ir.Value:
        """The Linear node, built at ``at``; its output has dtype and shape."""
        inputs: list[ir.Value | None] = [self.x, self.norm_scale, self.norm_bias, self.residual]
        for part in self.parts:
            inputs += part
        while inputs[-1] is None:
            inputs.pop()
        made = at.op(
            "Linear",
            *inputs,
            domain=MIAOTUI,
            norm=self.norm or None,
            epsilon=self.epsilon if self.norm else None,
            activation=self.activation or None,
            gated=int(self.gated) or None,
        )
        made.type = self.x.type
        if self.x.shape is not None:
            made.shape = ir.Shape([*list(self.x.shape)[:-1], self.width])
        return made
