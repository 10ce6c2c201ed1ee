"""Recurrent Keras layers as one operator each while tracing, so that they become ONNX LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...compiler.errors import Problem, UnsupportedError
from ..pytorch.operator import Cell, recurrent
from .cells import cell_problem, prepare


@dataclass(slots=True)
class Prepared:
    """ONNX weights of every cell of a model, made before tracing; keyed by the cell's identity."""

    cells: dict[int, Cell]

    def names(self) -> dict[int, str]:
        """Name of every prepared tensor by its address."""
        return {
            t.data_ptr(): f"{c.name}/{part}" for c in self.cells.values() for part, t in c.tensors().items()
        }


def prepare_cells(model: Any, place: str) -> Prepared:
    """Reorder the weights of every recurrent cell. Raises: UnsupportedError listing what has no operator."""
    import keras

    problems: list[Problem] = []
    cells: dict[int, Cell] = {}
    for layer in model._flatten_layers():
        if not isinstance(layer, keras.layers.RNN):
            continue
        where = f"{place}: layer {layer.name!r} ({type(layer).__name__})"
        if layer.stateful:
            problems.append(Problem(where, "keeps its state between calls", "rebuild it with stateful=False"))
        for cell in _cells_of(layer):
            fact = cell_problem(cell)
            if fact:
                problems.append(Problem(where, fact))
            else:
                cells[id(cell)] = prepare(cell)
    if problems:
        raise UnsupportedError.of(problems)
    return Prepared(cells)


@contextmanager
def recurrent_operators(prepared: Prepared) -> Iterator[None]:
    """Let recurrent layers compute through the ``miaotui::recurrent`` operator while the context lasts."""
    import keras

    zeros: list[Any] = []
    rnn, both = keras.layers.RNN, keras.layers.Bidirectional
    initial_state = rnn.get_initial_state

    def get_initial_state(self: Any, batch_size: Any) -> Any:
        states = initial_state(self, batch_size)
        zeros.extend(keras.tree.flatten(states))
        return states

    def inner_loop(self: Any, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        given = keras.tree.flatten(initial_state)
        known = [None if any(state is zero for zero in zeros) else state for state in given]
        outputs, states = _run(self, prepared, sequences, known, _single(mask), self.go_backwards)
        if self.go_backwards:
            outputs = outputs.flip(1)
        nested = keras.tree.pack_sequence_as(initial_state, states)
        return states[-2 if _is_lstm(self) else -1], outputs, nested if isinstance(nested, list) else [nested]

    def call(
        self: Any, sequences: Any, initial_state: Any = None, mask: Any = None, training: Any = None
    ) -> Any:
        return _bidirectional(self, prepared, sequences, initial_state, _single(mask))

    patches = [(rnn, "get_initial_state", get_initial_state), (both, "call", call)]
    kinds = (rnn, keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
    patches += [(kind, "inner_loop", inner_loop) for kind in kinds if "inner_loop" in vars(kind)]
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in patches]
    try:
        for owner, name, function in patches:
            setattr(owner, name, function)
        yield
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def _bidirectional(layer: Any, prepared: Prepared, sequences: Any, initial: Any, mask: Any) -> Any:
    """Both directions in the sequence's own order, merged as the layer says."""
    import torch

    half = len(initial) // 2 if initial is not None else 0
    made = []
    for part, states, reverse in (
        (layer.forward_layer, initial[:half] if half else None, False),
        (layer.backward_layer, initial[half:] if half else None, True),
    ):
        count = len(part.state_size)
        outputs, last = _run(part, prepared, sequences, states or [None] * count, mask, reverse)
        made.append((outputs if layer.return_sequences else last[-2 if _is_lstm(part) else -1], last))
    (forward, forward_states), (backward, backward_states) = made
    ways: dict[str | None, Callable[[], Any]] = {
        "concat": lambda: torch.cat([forward, backward], -1),
        "sum": lambda: forward + backward,
        "ave": lambda: (forward + backward) / 2,
        "mul": lambda: forward * backward,
        None: lambda: (forward, backward),
    }
    merged = ways[layer.merge_mode]()
    if not layer.return_state:
        return merged
    states = (*forward_states, *backward_states)
    return (*merged, *states) if layer.merge_mode is None else (merged, *states)


def _run(
    layer: Any, prepared: Prepared, sequences: Any, states: Sequence[Any], mask: Any, reverse: bool
) -> tuple[Any, list[Any]]:
    """Outputs [batch, time, units] in the sequence's order, and the last states, of the cells in turn."""
    x, left, last = sequences, list(states), []
    for cell in _cells_of(layer):
        plan = prepared.cells[id(cell)]
        h = left.pop(0)
        c = left.pop(0) if plan.kind == "LSTM" else None
        x, h, c = _masked(plan, x, h, c, mask, reverse, getattr(layer, "zero_output_for_mask", False))
        last += [h, c] if plan.kind == "LSTM" else [h]
    return x, last


def _masked(plan: Cell, x: Any, h: Any, c: Any, mask: Any, reverse: bool, zero: bool) -> tuple[Any, Any, Any]:
    """One cell over the sequence; a masked step leaves the state as it was, wherever it lies.

    The steps that count are moved to the front, run with their number as the sequence's length, and the
    outputs are read back from the last step that counted.
    """
    import torch

    if mask is None:
        return recurrent(plan, x, h, c, None, reverse)
    if reverse:
        y, h, c = _masked(plan, x.flip(1), h, c, mask.flip(1), False, zero)
        return y.flip(1), h, c
    counted = mask.to(torch.int64).cumsum(1)
    steps = torch.arange(x.shape[1], device=x.device).unsqueeze(0).expand_as(counted)
    dump = torch.full_like(counted, 0) + x.shape[1]
    places = torch.where(mask, counted - 1, dump)
    order = torch.cat([torch.zeros_like(steps), torch.zeros_like(steps[:, :1])], 1).scatter(1, places, steps)
    moved = x.gather(1, order[:, :-1].unsqueeze(-1).expand(-1, -1, x.shape[2]))
    lengths = counted[:, -1]
    y, last_h, last_c = recurrent(plan, moved, h, c, lengths, False)
    start = torch.zeros_like(last_h) if h is None else h
    index = (counted - 1).clamp(min=0).unsqueeze(-1).expand(-1, -1, y.shape[2])
    begun = (counted > 0).unsqueeze(-1)
    outputs = torch.where(begun, y.gather(1, index), torch.zeros_like(start).unsqueeze(1))
    if zero:
        outputs = torch.where(mask.unsqueeze(-1), outputs, torch.zeros_like(outputs))
    some = (lengths > 0).unsqueeze(-1)
    if c is not None:
        last_c = torch.where(some, last_c, c)
    return outputs, torch.where(some, last_h, start), last_c


def _cells_of(layer: Any) -> list[Any]:
    cell = layer.cell
    return list(cell.cells) if type(cell).__name__ == "StackedRNNCells" else [cell]


def _is_lstm(layer: Any) -> bool:
    return type(_cells_of(layer)[-1]).__name__ == "LSTMCell"


def _single(mask: Any) -> Any:
    return mask[0] if isinstance(mask, list | tuple) else mask
