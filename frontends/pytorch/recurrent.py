"""torch's LSTM, GRU and RNN as one operator for each direction while tracing; torch would unroll them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .operator import Cell, recurrent

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""torch's gate for each of ONNX's: LSTM i f g o → i o f c; GRU r z n → z r h."""


def prepare_layers(module: Any) -> dict[int, list[list[Cell]]]:
    """ONNX weights of every recurrent layer in ``module``, by its identity: for each level, its directions.

    A layer that has no operator (projections) is left out: torch traces it as it can.
    """
    import torch

    prepared = {}
    for path, layer in module.named_modules():
        if isinstance(layer, torch.nn.LSTM | torch.nn.GRU | torch.nn.RNN) and not layer.proj_size:
            prepared[id(layer)] = [
                [_cell(layer, path, level, suffix) for suffix in ("", "_reverse")[: 1 + layer.bidirectional]]
                for level in range(layer.num_layers)
            ]
    return prepared


def weight_names(prepared: Mapping[int, list[list[Cell]]]) -> dict[int, str]:
    """Name of every prepared tensor by its address."""
    cells = [cell for levels in prepared.values() for directions in levels for cell in directions]
    return {t.data_ptr(): f"{cell.name}.{part}" for cell in cells for part, t in cell.tensors().items()}


def _cell(layer: Any, path: str, level: int, suffix: str) -> Cell:
    import torch

    kind = layer.mode.partition("_")[0]

    def part(name: str) -> Any:
        weight = getattr(layer, f"{name}_l{level}{suffix}").detach()
        return torch.cat([weight.chunk(len(GATES[kind]))[gate] for gate in GATES[kind]])

    w, r = part("weight_ih").unsqueeze(0), part("weight_hh").unsqueeze(0)
    biased = layer.bias
    b = torch.cat([part("bias_ih"), part("bias_hh")]) if biased else w.new_zeros(2 * w.shape[1])
    gates = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}
    activations = gates.get(kind, ("Relu" if layer.mode == "RNN_RELU" else "Tanh",))
    return Cell(f"{path}.l{level}{suffix}", kind, w, r, b.unsqueeze(0), activations, kind == "GRU")


@contextmanager
def recurrent_operators(prepared: Mapping[int, list[list[Cell]]]) -> Iterator[None]:
    """Let the prepared layers compute through ``miaotui::recurrent`` while the context lasts."""
    import torch

    kinds = (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)
    originals = [(kind, kind.forward) for kind in kinds]

    def replacement(original: Any) -> Any:
        def forward(self: Any, input: Any, hx: Any = None) -> Any:  # noqa: A002 - torch's name
            levels = prepared.get(id(self))
            if levels is None or not isinstance(input, torch.Tensor):
                return original(self, input, hx)
            return _run(self, levels, input, hx)

        return forward

    try:
        for kind, original in originals:
            kind.forward = replacement(original)
        yield
    finally:
        for kind, original in originals:
            kind.forward = original


def _run(layer: Any, levels: list[list[Cell]], x: Any, hx: Any) -> Any:
    """The layer's outputs and last states, shaped as torch shapes them."""
    import torch

    single = x.dim() == 2
    if single:
        x = x.unsqueeze(0 if layer.batch_first else 1)
    elif not layer.batch_first:
        x = x.transpose(0, 1)
    lstm = layer.mode == "LSTM"
    states = None if hx is None else tuple(hx) if lstm else (hx,)
    if states is not None and single:
        states = tuple(state.unsqueeze(1) for state in states)
    last_h: list[Any] = []
    last_c: list[Any] = []
    for directions in levels:
        outputs = []
        for reverse, cell in enumerate(directions):
            index = len(last_h)
            h = None if states is None else states[0][index]
            c = states[1][index] if states is not None and lstm else None
            y, end_h, end_c = recurrent(cell, x, h, c, None, bool(reverse))
            outputs.append(y)
            last_h.append(end_h)
            last_c.append(end_c)
        x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
    ends = [torch.stack(last_h), *([torch.stack(last_c)] if lstm else [])]
    if single:
        x, ends = x.squeeze(0), [end.squeeze(1) for end in ends]
    elif not layer.batch_first:
        x = x.transpose(0, 1)
    return x, tuple(ends) if lstm else ends[0]
