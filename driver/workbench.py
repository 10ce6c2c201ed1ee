"""Where candidates are built and opened while a compile runs: variants of one draft, sharing its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from ..compiler.codegen.base import Backend
from ..compiler.codegen.native.backend import NativeBackend
from ..compiler.codegen.onnxruntime.backend import OnnxRuntimeBackend
from ..compiler.codegen.tvm.backend import PARAMETERS, TvmBackend
from ..compiler.draft import Draft
from ..compiler.errors import InternalError
from ..compiler.manifest import Entry, Segment, Variant
from ..compiler.options import Target
from ..compiler.program import Decoding, DimRange, Program
from ..runtime.base import Model, Runner
from ..runtime.chain import ChainModel
from ..runtime.native import NativeModel
from ..runtime.onnxruntime import OnnxRuntimeModel
from ..runtime.row_by_row import is_row_by_row
from ..runtime.stepwise import StepwiseRunner
from ..runtime.tvm import TvmModel
from .lower import Lowered
from .regions import NAME as REGIONS
from .regions import Regions
from .relocation import relocated

BACKENDS: dict[str, Backend] = {
    "ort": OnnxRuntimeBackend(),
    "native": NativeBackend(),
    "tvm": TvmBackend(),
    REGIONS: Regions(),
}
"""Code generators by name. Their lowering is in ``passes/lowering/<name>``, their runner in ``runtime/``."""

SOURCE_BACKEND = "ort"
"""What the program as imported runs under: it takes every operator."""


@dataclass(frozen=True, slots=True)
class Built:
    """A program written as a variant of the draft, what a session of each entry is made from.

    ``weights``: bytes of its initializers. ``decoding``: how its entry with state is driven, if it has one.
    ``draft``: the folder that it was written in.
    """

    name: str
    variant: Variant
    models: Mapping[str, Model]
    weights: int
    decoding: Decoding | None
    draft: Path

    @property
    def model(self) -> Model:
        """The main entry's."""
        return self.models["main"]

    def open(self, threads: int | None = None, taps: Sequence[str] = (), resting: bool = False) -> Runner:
        """A runner of the main entry; the caller closes it. Raises: as its backend's runner."""
        return self.model.open(threads, taps, resting=resting)

    def open_stepwise(
        self, threads: int | None = None, *, resting: bool = False, steps: int = 0
    ) -> StepwiseRunner:
        """A runner of the entry with state; the caller closes it. Raises: InternalError if there is none."""
        if self.decoding is None:
            raise InternalError(f"{self.name} has no entry with state")
        with ExitStack() as stack:
            decode = self.models[self.decoding.entry].open(threads, resting=resting)
            stack.callback(decode.close)
            source = self.decoding.encoder
            encode = None if source is None else self.models[source].open(threads, resting=resting)
            stack.pop_all()
            return StepwiseRunner(self.decoding, decode, encode, steps)


class Workbench:
    """Builds programs into ``draft`` for ``target``; the source under ``SOURCE_BACKEND``."""

    __slots__ = ("backend", "built", "draft", "target")

    def __init__(self, draft: Draft, backend: str, target: Target) -> None:
        self.draft = draft
        self.backend = BACKENDS[backend]
        self.target = target
        self.built = 0

    def source(self, program: Program) -> Built:
        """The program as imported: the baseline of timing and bisection."""
        return self._build(program, "source", "source", BACKENDS[SOURCE_BACKEND], Target(self.target.device))

    def optimized(self, lowered: Lowered, name: str) -> Built:
        """A lowered program as variant ``name``."""
        return self._build(lowered.program, name, "optimized", self.backend, self.target)

    def again(self, built: Built, lowered: Lowered, name: str) -> Built:
        """What another draft has built from ``lowered``, in this one: moved where making it takes long."""
        if built.variant.backend == "ort":
            return self.optimized(lowered, name)
        self.built += 1
        variant = relocated(built.variant, built.draft, self.draft, name)
        files = variant.entries
        models = {entry: self._model(lowered.program, entry, variant, name) for entry in files}
        return replace(built, name=name, variant=variant, models=models, draft=self.draft.path)

    def _build(self, program: Program, name: str, role: str, backend: Backend, target: Target) -> Built:
        self.built += 1
        build = backend.build(program, target, self.draft.variant(name), self.draft.weights)
        isa = build.settings.get("isa")
        variant = Variant(
            role="source" if role == "source" else "optimized",
            target=str(target) if isa is None else f"{target.device}:{isa}",
            backend=backend.name,
            entries={entry: f"variants/{name}/{file}" for entry, file in build.entries.items()},
            settings=build.settings,
            operators=operators(program),
            segments={
                entry: tuple(replace(part, file=f"variants/{name}/{part.file}") for part in parts)
                for entry, parts in build.segments.items()
            },
        )
        models = {entry: self._model(program, entry, variant, name) for entry in variant.entries}
        return Built(name, variant, models, tensor_bytes(program), program.decoding, self.draft.path)

    def _model(self, program: Program, entry: str, variant: Variant, name: str) -> Model:
        """What a runner of the entry is opened from while it lies in the draft."""
        decoding, dims = program.decoding, program.dims
        if entry in variant.segments:
            parts = (self._part(variant, part, dims, name) for part in variant.segments[entry])
            target = Target.parse(variant.target)
            return ChainModel(tuple(parts), signature(program, entry), dims, target, name)
        kept = decoding.state if decoding is not None and decoding.entry == entry else ()
        state = {tensor.input: tensor.output for tensor in kept}
        made = self._alone(variant, entry, signature(program, entry), state, dims, name)
        if kept and decoding is not None and isinstance(made, OnnxRuntimeModel) and is_row_by_row(variant):
            return replace(made, row_by_row=decoding.tokens)
        return made

    def _part(self, variant: Variant, part: Segment, dims: Mapping[str, DimRange], name: str) -> Model:
        alone = replace(
            variant,
            backend=part.backend,
            entries={part.entry: part.file},
            settings=part.settings,
            segments={},
        )
        return self._alone(alone, part.entry, part.signature, {}, dims, f"{name} {part.entry}")

    def _alone(
        self,
        variant: Variant,
        entry: str,
        called: Entry,
        state: Mapping[str, str],
        dims: Mapping[str, DimRange],
        name: str,
    ) -> Model:
        """Of an entry that one backend runs."""
        file, target = self.draft.path / variant.entries[entry], Target.parse(variant.target)
        if variant.weights is not None:
            return NativeModel(
                library=file,
                weights=self.draft.path / variant.weights,
                signature=called,
                entry=entry,
                state=state,
                dims=dims,
                target=target,
                place=name,
            )
        if variant.backend == "tvm":
            return TvmModel(
                library=file,
                weights=self.draft.weights.path,
                signature=called,
                parameters=variant.settings[PARAMETERS],
                entry=entry,
                state=state,
                dims=dims,
                target=target,
                place=name,
            )
        return OnnxRuntimeModel(
            data=file.read_bytes(),
            signature=called,
            dims=dims,
            settings=variant.settings,
            target=target,
            weights=self.draft.weights.path if self.draft.weights.size else None,
            place=name,
        )


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
