"""A small encoder-decoder: the mean of the encoded source is added to the decoder's input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from miaotui.compiler.ir.builder import FLOAT, INT64, Builder
from miaotui.compiler.program import Decoding, Program
from support.decoders import Tiny

START = 257


@dataclass(frozen=True)
class TinyTranslator(Tiny):
    """``masked``: the encoder takes a mask, so that sources of different lengths run together."""

    masked: bool = True

    def decoding(self) -> Decoding:
        inputs = ("attention_mask",) if self.masked else ()
        return replace(super().decoding(), encoder="encode", encoder_inputs=inputs, start=START)

    def program(self) -> Program:
        made = super().program()
        made.entries["encode"] = self._encoder()
        return made

    def translate(self, source: list[int], count: int) -> list[int]:
        """The greedy translation in numpy."""
        w, made = self.weights(), [START]
        meant = np.tanh(w["embed"][source] @ w["q0"]).mean(0)
        for _ in range(count):
            made.append(int(self.logits(made, meant)[-1].argmax()))
        return made[1:]

    def _encoder(self) -> ir.Model:
        b = Builder()
        w = {name: b.weight(name, array) for name, array in self.weights().items() if name in ("embed", "q0")}
        ids = b.input("input_ids", ("batch", "source"), INT64)
        if self.masked:
            b.input("attention_mask", ("batch", "source"), INT64)
        b.output(b.op("Tanh", b.op("MatMul", b.op("Gather", w["embed"], ids), w["q0"])), "hidden")
        return b.model()

    def _with_source(self, b: Builder, w: dict[str, ir.Value], x: ir.Value) -> ir.Value:
        hidden = b.input("hidden", ("batch", "source", self.hidden), FLOAT)
        axis = b.weight("source_axis", [1])
        if not self.masked:
            return b.op("Add", x, b.op("ReduceMean", hidden, axis, keepdims=1))
        mask = b.op("Cast", b.input("attention_mask", ("batch", "source"), INT64), to=FLOAT)
        seen = b.op("Mul", hidden, b.op("Unsqueeze", mask, b.weight("last_axis", [-1])))
        total = b.op("Unsqueeze", b.op("ReduceSum", mask, axis, keepdims=1), b.weight("third", [-1]))
        return b.op("Add", x, b.op("Div", b.op("ReduceSum", seen, axis, keepdims=1), total))
