"""Where candidates are built and opened while a compile runs: variants of one draft, sharing its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..compiler.codegen.base import Backend
from ..compiler.codegen.onnxruntime.backend import OnnxRuntimeBackend
from ..compiler.draft import Draft
from ..compiler.errors import InternalError
from ..compiler.manifest import Entry, Variant
from ..compiler.options import Target
from ..compiler.program import Decoding, Program
from ..runtime.onnxruntime import RESTING, Model, OnnxRuntimeRunner
from ..runtime.stepwise import StepwiseRunner
from .lower import Lowered

BACKENDS: dict[str, Backend] = {"ort": OnnxRuntimeBackend()}
"""Code generators by name. Their lowering is in ``passes/lowering/<name>``, their runner in ``runtime/``."""


@dataclass(frozen=True, slots=True)
class Built:
    """A program written as a variant of the draft, what a session of each entry is made from.

    ``weights``: bytes of its initializers. ``decoding``: how its entry with state is driven, if it has one.
    """

    name: str
    variant: Variant
    models: Mapping[str, Model]
    weights: int
    decoding: Decoding | None = None

    @property
    def model(self) -> Model:
        """The main entry's."""
        return self.models["main"]

    def open(
        self, threads: int | None = None, taps: Sequence[str] = (), resting: bool = False
    ) -> OnnxRuntimeRunner:
        """A runner; the caller closes it. ``resting``: see ``RESTING``. Raises: as OnnxRuntimeRunner."""
        return self._open("main", threads, taps, resting)

    def open_stepwise(
        self, threads: int | None = None, *, resting: bool = False, steps: int = 0
    ) -> StepwiseRunner:
        """A runner of the entry with state; the caller closes it. Raises: InternalError if there is none."""
        if self.decoding is None:
            raise InternalError(f"{self.name} has no entry with state")
        with ExitStack() as stack:
            decode = self._open(self.decoding.entry, threads, (), resting)
            stack.callback(decode.close)
            source = self.decoding.encoder
            encode = None if source is None else self._open(source, threads, (), resting)
            stack.pop_all()
            return StepwiseRunner(self.decoding, decode, encode, steps)

    def _open(self, entry: str, threads: int | None, taps: Sequence[str], resting: bool) -> OnnxRuntimeRunner:
        model = self.models[entry]
        settings = {**model.settings, **(RESTING if resting else {})}
        return OnnxRuntimeRunner(replace(model, settings=settings), threads, taps)


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
        models = {
            entry: Model(
                data=(self.draft.path / file).read_bytes(),
                signature=signature(program, entry),
                dims=program.dims,
                settings=build.settings,
                target=self.target,
                weights=self.draft.weights.path if self.draft.weights.size else None,
                place=name,
            )
            for entry, file in entries.items()
        }
        return Built(name, variant, models, tensor_bytes(program), program.decoding)


def signature(program: Program, entry: str = "main") -> Entry:
    """The entry's typed signature."""
    return Entry(program.inputs(entry), program.outputs(entry))


def tensor_bytes(program: Program) -> int:
    """Bytes of the initializers of the entry that has most: entries share what they can."""
    return max(
        sum(
            value.const_value.nbytes
            for graph in model.graphs()
            for value in graph.initializers.values()
            if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING
        )
        for model in program.entries.values()
    )


def operators(program: Program) -> dict[str, int]:
    """How many nodes of each operator the program has, subgraphs included, most frequent first."""
    counts = Counter(_spelled(node) for model in program.entries.values() for node in model.graph.all_nodes())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _spelled(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
