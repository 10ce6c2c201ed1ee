"""Keras recurrent cells in ONNX terms: gate order, bias layout, activations."""

from __future__ import annotations

from typing import Any

from ..pytorch.operator import Cell

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "RNN": (0,)}
"""Keras's gate for each of ONNX's: LSTM i f c o → i o f c; GRU z r h as it is."""
KINDS = {"LSTMCell": "LSTM", "GRUCell": "GRU", "SimpleRNNCell": "RNN"}
ACTIVATIONS = {
    "tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "hard_sigmoid": "HardSigmoid", "linear": "Affine",
    "softsign": "Softsign", "softplus": "Softplus", "elu": "Elu",
}  # fmt: skip


def cell_problem(cell: Any) -> str:
    """Why ``cell`` has no ONNX operator; empty if it has."""
    kind = KINDS.get(type(cell).__name__)
    if kind is None or not type(cell).__module__.startswith("keras."):
        return f"its cell {type(cell).__name__} has no ONNX operator"
    unknown = [name for name in _activation_names(cell) if name not in ACTIVATIONS]
    return f"activation {', '.join(unknown)} is not one of ONNX's for {kind}" if unknown else ""


def prepare(cell: Any) -> Cell:
    """The cell's weights in ONNX's order, as new tensors (they are small beside the model)."""
    import torch

    kind = KINDS[type(cell).__name__]
    units, gates = cell.units, GATES[kind]
    w, r = (
        _gates(v.value.detach(), units, gates).t().unsqueeze(0) for v in (cell.kernel, cell.recurrent_kernel)
    )
    reset_after = bool(getattr(cell, "reset_after", False))
    if cell.bias is None:
        bias = w.new_zeros(2 * len(gates) * units)
    else:
        given = cell.bias.value.detach()
        rows = given if given.dim() == 2 else torch.stack([given, torch.zeros_like(given)])
        bias = torch.cat([_gates(row, units, gates) for row in rows])
    activations = tuple(ACTIVATIONS[name] for name in _activation_names(cell))
    name = cell.path.removesuffix(f"/{cell.name}") if "/" in cell.path else cell.name
    return Cell(name, kind, w.contiguous(), r.contiguous(), bias.unsqueeze(0), activations, reset_after)


def _gates(weight: Any, units: int, gates: tuple[int, ...]) -> Any:
    import torch

    return torch.cat([weight[..., g * units : (g + 1) * units] for g in gates], -1)


def _activation_names(cell: Any) -> list[str]:
    """ONNX's f, g, h: gates, candidate, and for LSTM the output too."""
    import keras

    def name(function: Any) -> str:
        found = keras.activations.serialize(function)
        return found if isinstance(found, str) else str(getattr(function, "__name__", function))

    inner = name(cell.activation)
    kind = KINDS.get(type(cell).__name__)
    if kind == "RNN":
        return [inner]
    gate = name(cell.recurrent_activation)
    return [gate, inner, inner] if kind == "LSTM" else [gate, inner]
