"""``miaotui::recurrent``: a torch operator that stands for ONNX LSTM, GRU or RNN, and its translation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

ALPHA = {"HardSigmoid": 1 / 6, "Affine": 1.0, "Elu": 1.0}
BETA = {"HardSigmoid": 0.5, "Affine": 0.0}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell as ONNX has it; with G = gates * units: w [1, G, inputs], r [1, G, units], b [1, 2 * G]."""

    name: str
    kind: str
    w: Any
    r: Any
    b: Any
    activations: tuple[str, ...]
    linear_before_reset: bool = False

    def tensors(self) -> dict[str, Any]:
        """The weights by their ONNX names."""
        return {"W": self.w, "R": self.r, "B": self.b}


def recurrent(cell: Cell, x: Any, h: Any, c: Any, lengths: Any, reverse: bool) -> tuple[Any, Any, Any]:
    """x: [batch, time, inputs]; h, c: [batch, units] or None for zeros; lengths: [batch] or None.

    Returns outputs [batch, time, units] in the order of x, and the last h and c [batch, units].
    """
    y, last_h, last_c = _operator()(
        x.transpose(0, 1), cell.w, cell.r, cell.b, h, c, lengths,
        cell.kind, ",".join(cell.activations), reverse, cell.linear_before_reset,
    )  # fmt: skip
    return y.transpose(0, 1), last_h, last_c


def recurrent_translations() -> dict[Any, Callable[..., Any]]:
    """The operator's entry for the exporter's translation table."""
    return {_operator(): to_onnx}


@cache
def _operator() -> Any:
    import torch

    schema = (
        "(Tensor x, Tensor w, Tensor r, Tensor b, Tensor? h, Tensor? c, Tensor? lengths, str kind, "
        "str activations, bool reverse, bool linear_before_reset) -> (Tensor, Tensor, Tensor)"
    )
    torch.library.define("miaotui::recurrent", schema)

    def shapes(
        x: Any,
        w: Any,
        r: Any,
        b: Any,
        h: Any,
        c: Any,
        lengths: Any,
        kind: str,
        activations: str,
        *flags: bool,
    ) -> Any:
        units = r.shape[2]
        state = (x.shape[1], units)
        return x.new_empty((x.shape[0], *state)), x.new_empty(state), x.new_empty(state)

    torch.library.register_fake("miaotui::recurrent", shapes)
    return torch.ops.miaotui.recurrent.default


def to_onnx(
    x: Any, w: Any, r: Any, b: Any, h: Any, c: Any, lengths: Any, kind: str, activations: str, reverse: bool,
    linear_before_reset: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """The operator as one ONNX node: outputs [time, batch, units], last h and c [batch, units]."""
    from onnxscript import opset23 as op

    names = activations.split(",")
    attributes: dict[str, Any] = {
        "hidden_size": int(r.shape[2]),
        "direction": "reverse" if reverse else "forward",
        "activations": names,
    }
    if any(name in ALPHA for name in names):
        attributes["activation_alpha"] = [ALPHA[name] for name in names if name in ALPHA]
    if any(name in BETA for name in names):
        attributes["activation_beta"] = [BETA[name] for name in names if name in BETA]
    if names in (["Sigmoid", "Tanh", "Tanh"], ["Sigmoid", "Tanh"], ["Tanh"]):
        del attributes["activations"]
    zero, one = _axis(0), _axis(1)
    lengths = None if lengths is None else op.Cast(lengths, to=6)
    h, c = (None if state is None else op.Unsqueeze(state, zero) for state in (h, c))
    last_c = None
    if kind == "LSTM":
        y, last_h, last_c = op.LSTM(x, w, r, b, lengths, h, c, **attributes)
    elif kind == "GRU":
        y, last_h = op.GRU(x, w, r, b, lengths, h, linear_before_reset=int(linear_before_reset), **attributes)
    else:
        y, last_h = op.RNN(x, w, r, b, lengths, h, **attributes)
    outputs, state = op.Squeeze(y, one), op.Squeeze(last_h, zero)
    # GRU and RNN have no second state; what stands in its place is never read.
    return outputs, state, op.Identity(state) if last_c is None else op.Squeeze(last_c, zero)


def _axis(axis: int) -> Any:
    from onnxscript import opset23 as op

    return op.Constant(value_ints=[axis])
