"""Program: what passes transform. Entry graphs, dimension ranges, calling convention, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir

from .errors import InternalError
from .parallel.mesh import Mesh

OPSET = 23
"""The opset every frontend raises to; newer models keep theirs.

Attention, RMSNormalization and RotaryEmbedding exist from here on.
"""

TRIALS = "miaotui.trials"
"""Key of an entry model's metadata: schedules that a code generator may measure for each of its kernels."""

HALVES = "miaotui.halves"
"""Key of an entry model's metadata: some of its float32 weights were rounded to float16, to be stored so."""

LAYOUT = "miaotui.layout"
"""Key of an entry model's metadata: ``NHWC`` if convolutions are to run with channels last."""

Dim: TypeAlias = int | str | None
"""A static size, a named symbol, or unknown."""

Tree: TypeAlias = str | list[Any] | dict[str, Any] | None
"""Nested arguments as JSON: a leaf is a tensor name; ``{"tuple": [...]}``, ``{"dict": {...}}`` or a list."""


@dataclass(frozen=True, slots=True)
class DimRange:
    """The sizes a named dimension may take, both ends included; ``maximum=None`` is unbounded."""

    minimum: int = 1
    maximum: int | None = None

    def __str__(self) -> str:
        return f"{self.minimum}..{'' if self.maximum is None else self.maximum}"

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size and (self.maximum is None or size <= self.maximum)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of an entry's input or output.

    >>> str(TensorSpec("x", ir.DataType.FLOAT, ("batch", 3)))
    'x: float32[batch, 3]'
    """

    name: str
    dtype: ir.DataType
    shape: tuple[Dim, ...] | None

    @classmethod
    def of(cls, value: ir.Value) -> TensorSpec:
        """The spec of a graph value; InternalError if it has no name or dtype."""
        if value.name is None or value.dtype is None:
            raise InternalError(f"graph value {value.name!r} has no name or no dtype")
        shape = None if value.shape is None else tuple(dim_of(d) for d in value.shape)
        return cls(value.name, value.dtype, shape)

    def __str__(self) -> str:
        dims = "..." if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {dtype_name(self.dtype)}[{dims}]"


def dim_of(dim: int | ir.SymbolicDim) -> Dim:
    """An onnx_ir dimension as int, symbol name or None."""
    return dim if isinstance(dim, int) else dim.value


def dtype_name(dtype: ir.DataType) -> str:
    """numpy's spelling of an ONNX dtype: ``float32``, ``int64``, ``bfloat16``, ``string``."""
    return "string" if dtype == ir.DataType.STRING else str(dtype.numpy().name) if dtype else "undefined"


@dataclass(frozen=True, slots=True)
class Call:
    """How the source model is called, so that an executable can be called the same way.

    ``parameters`` maps each parameter of the source's signature, in order, to the tree of input names
    it is flattened into; ``result`` is the tree of output names; ``tensors`` says what the caller
    holds: ``"numpy"``, ``"torch"`` or ``"keras"``.
    """

    parameters: Mapping[str, Tree]
    result: Tree
    tensors: str = "numpy"


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A tensor that lives between runs of an entry: what ``output`` held after one, ``input`` is in the next.

    Both are ``[batch, heads, capacity, width]``; a runtime may bind them to one buffer.
    """

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an entry with state continues token sequences: its inputs and outputs by role.

    ``tokens``: int64[batch, tokens], the next tokens of every row. ``lengths``: int64[batch], how many
    tokens of each row the state holds; the new ones are written behind them, row by row, so rows of
    different lengths need no padding on the left and a row may be cut back by passing a smaller length.
    ``select``: int64[batch, selected], positions within ``tokens`` whose logits are wanted (0 or more).
    ``logits``: float[batch, selected, vocabulary]. ``next``: int64[batch, selected], their argmax.
    ``state``: the KV cache. ``context``: positions the model can hold, None if nothing bounds them.
    ``encoder``: an entry that is run once per source text; its outputs are inputs of the same name here,
    and ``encoder_inputs`` are its inputs beside the tokens (a source mask), which the entry may take too.
    ``start``: the token a decoder of an encoder-decoder model begins with.
    """

    vocabulary: int
    state: tuple[StateTensor, ...]
    context: int | None = None
    entry: str = "decode"
    tokens: str = "input_ids"
    lengths: str = "past_lengths"
    select: str = "select"
    logits: str = "logits"
    next: str = "next"
    encoder: str | None = None
    encoder_inputs: tuple[str, ...] = ()
    start: int | None = None


@dataclass(slots=True)
class Program:
    """Named entry models with their signatures and everything that travels along.

    ``entries``: ``main``, the model as imported, and what passes derive from it (``decode``, with state).
    Each is an ``ir.Model`` (graph, functions, opset imports); entries may share weight tensors, never values.
    ``dims``: ranges of the named dimensions. ``call``: the source's calling convention.
    ``assets``: files to carry into the executable folder, a path or the contents, by their name there
    (``tokenizer/tokenizer.json``, ``generation_config.json``).
    ``decoding``: how the entry with state is driven, once a pass has derived it. ``context``: positions the
    model can hold, where the source's configuration says so.
    ``layers``: source layer path → name of the value that layer computes in the imported graph.
    ``mesh``: the ranks that values are sharded over and nodes staged on, once a pass has partitioned it.
    ``source``: what was imported, e.g. ``{"framework": "torch 2.13.0", "model": "BertModel"}``.
    """

    entries: dict[str, ir.Model]
    dims: dict[str, DimRange] = field(default_factory=dict)
    call: Call | None = None
    assets: dict[str, Path | bytes] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    decoding: Decoding | None = None
    context: int | None = None
    mesh: Mesh | None = None

    @property
    def main(self) -> ir.Model:
        """The entry called ``main``."""
        return self.entries["main"]

    def inputs(self, entry: str = "main") -> tuple[TensorSpec, ...]:
        """Signature of the entry's inputs (initializers with defaults are not inputs)."""
        graph = self.entries[entry].graph
        return tuple(TensorSpec.of(v) for v in graph.inputs if v.name not in graph.initializers)

    def outputs(self, entry: str = "main") -> tuple[TensorSpec, ...]:
        """Signature of the entry's outputs."""
        return tuple(TensorSpec.of(v) for v in self.entries[entry].graph.outputs)

    def graphs(self) -> Iterator[ir.Graph | ir.Function]:
        """Every graph and function of every entry, subgraphs included."""
        for model in self.entries.values():
            yield from model.graphs()
            yield from model.functions.values()

    def clone(self) -> Program:
        """A copy whose graphs can be edited independently; weight tensors are shared, not copied."""
        return replace(
            self,
            entries={name: model.clone() for name, model in self.entries.items()},
            dims=dict(self.dims),
            assets=dict(self.assets),
            layers=dict(self.layers),
            source=dict(self.source),
        )
