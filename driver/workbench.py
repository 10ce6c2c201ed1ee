"""Where candidates are built and opened while a compile runs: variants of one draft, sharing its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..compiler.codegen.base import Backend
from ..compiler.codegen.onnxruntime.backend import OnnxRuntimeBackend
from ..compiler.draft import Draft
from ..compiler.manifest import Entry, Variant
from ..compiler.options import Target
from ..compiler.program import Program
from ..runtime.onnxruntime import RESTING, Model, OnnxRuntimeRunner
from .lower import Lowered

BACKENDS: dict[str, Backend] = {"ort": OnnxRuntimeBackend()}
"""Code generators by name. Their lowering is in ``passes/lowering/<name>``, their runner in ``runtime/``."""


@dataclass(frozen=True, slots=True)
class Built:
    """A program written as a variant of the draft, what a session is made from, and its bytes of weights."""

    name: str
    variant: Variant
    model: Model
    weights: int

    def open(
        self, threads: int | None = None, taps: Sequence[str] = (), resting: bool = False
    ) -> OnnxRuntimeRunner:
        """A runner; the caller closes it. ``resting``: see ``RESTING``. Raises: as OnnxRuntimeRunner."""
        settings = {**self.model.settings, **(RESTING if resting else {})}
        return OnnxRuntimeRunner(replace(self.model, settings=settings), threads, taps)


class Workbench:
    """Builds programs into ``draft`` for ``target`` with one backend."""

    __slots__ = ("backend", "built", "draft", "target")

    def __init__(self, draft: Draft, backend: str, target: Target) -> None:
        self.draft = draft
        self.backend = BACKENDS[backend]
        self.target = target
        self.built = 0

    def source(self, program: Program) -> Built:
        """The program as imported: the baseline of timing and bisection."""
        return self._build(program, "source", "source")

    def optimized(self, lowered: Lowered, name: str) -> Built:
        """A lowered program as variant ``name``."""
        return self._build(lowered.program, name, "optimized")

    def _build(self, program: Program, name: str, role: str) -> Built:
        self.built += 1
        build = self.backend.build(program, self.target, self.draft.variant(name), self.draft.weights)
        entries = {entry: f"variants/{name}/{file}" for entry, file in build.entries.items()}
        variant = Variant(
            role="source" if role == "source" else "optimized",
            target=str(self.target),
            backend=self.backend.name,
            entries=entries,
            settings=build.settings,
            operators=operators(program),
        )
        model = Model(
            data=(self.draft.path / entries["main"]).read_bytes(),
            signature=signature(program),
            dims=program.dims,
            settings=build.settings,
            target=self.target,
            weights=self.draft.weights.path if self.draft.weights.size else None,
            place=name,
        )
        return Built(name, variant, model, tensor_bytes(program))


def signature(program: Program, entry: str = "main") -> Entry:
    """The entry's typed signature."""
    return Entry(program.inputs(entry), program.outputs(entry))


def tensor_bytes(program: Program) -> int:
    """Bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for model in program.entries.values()
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING
    )


def operators(program: Program) -> dict[str, int]:
    """How many nodes of each operator the program has, subgraphs included, most frequent first."""
    counts = Counter(_spelled(node) for model in program.entries.values() for node in model.graph.all_nodes())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _spelled(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
