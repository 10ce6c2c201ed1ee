"""A backend made of backends: the program is cut, each segment lowered and built by its owner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from ..compiler.codegen.base import Backend, Build
from ..compiler.codegen.onnxruntime.backend import OnnxRuntimeBackend
from ..compiler.codegen.tvm.backend import TvmBackend
from ..compiler.codegen.tvm.kernels.sparse import declines
from ..compiler.errors import InternalError, UnsupportedError
from ..compiler.ir.constants import constant_tensor
from ..compiler.ir.cut import cut
from ..compiler.manifest import Entry, Segment
from ..compiler.options import Target
from ..compiler.program import Program
from ..compiler.weights import WeightStore
from ..passes.base import PassContext, Pipeline
from ..passes.cleanup import CLEANUP
from ..passes.lowering.onnxruntime import LOWER_CPU
from ..passes.lowering.tvm import LOWER_TVM
from ..passes.observers import Verify, run_pipeline

NAME = "ort+tvm"

Owner = Callable[[ir.Node], str]

ALONG = frozenset((
    "Add", "Sub", "Mul", "Div", "Relu", "Gelu", "Sigmoid", "Tanh", "Erf", "Swish", "HardSwish", "LeakyRelu",
    "LayerNormalization", "RMSNormalization",
))  # fmt: skip
"""Operators that go to the owner of a product that they follow: there they cost a hand-over less."""


def is_block_sparse(node: ir.Node) -> bool:
    """Whether it is a product with a constant weight that TVM's kernel for blocks of zeros is made for."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return False
    weight = constant_tensor(node.inputs[1])
    if weight is None or len(weight.shape) != 2:
        return False
    turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    return declines(weight, turned) is None


def sparse_to_tvm(program: Program, target: Target, tvm: Backend) -> Owner:
    """``tvm`` for block-sparse products and what only goes along with them, ``ort`` for all others."""
    owned: set[ir.Node] = set()
    for model in program.entries.values():
        for node in model.graph:
            follows = node.domain == "" and node.op_type in ALONG
            follows &= any(v is not None and v.producer() in owned for v in node.inputs)
            if (follows or is_block_sparse(node)) and tvm.supports(node, target) is None:
                owned.add(node)
    return lambda node: "tvm" if node in owned else "ort"


@dataclass(slots=True)
class Regions:
    """``backends`` by the name of the owner that ``owners`` gives each node.

    What it takes has been through every pass but lowering: each segment is lowered for its backend alone.
    """

    backends: Mapping[str, Backend] = field(
        default_factory=lambda: {"ort": OnnxRuntimeBackend(), "tvm": TvmBackend()}
    )
    lowering: Mapping[str, Pipeline] = field(default_factory=lambda: {"ort": LOWER_CPU, "tvm": LOWER_TVM})
    owners: Callable[[Program, Target, Backend], Owner] = sparse_to_tvm
    name: str = NAME

    def supports(self, node: ir.Node, target: Target) -> str | None:
        """None: what TVM does not take is left to ONNX Runtime."""
        return None

    def build(self, program: Program, target: Target, folder: Path, weights: WeightStore) -> Build:
        """Cut every entry, and let each backend build all its segments at once.

        Raises: UnsupportedError if there is nothing to cut, or an entry keeps state; else as the backends.
        """
        if program.decoding is not None:
            fact = "keeps state between runs, which segments do not hand over"
            raise UnsupportedError(f"entry {program.decoding.entry!r}", fact, "use --backend ort, or native")
        owner = self.owners(program, target, self.backends["tvm"])
        first: set[str] = set()
        order = {entry: self._segments(program, entry, owner, target, first) for entry in program.entries}
        owners = {name for segments in order.values() for name, _, _ in segments}
        if len(owners) < 2:
            fact = f"has no segments to share out, all of it is {''.join(owners) or 'nobody'}'s"
            raise UnsupportedError("program", fact, "choose one backend")
        builds = {}
        for name in sorted(owners):
            mine = {
                part: model for segments in order.values() for owned, part, model in segments if owned == name
            }
            (folder / name).mkdir()
            whole = replace(program, entries=mine)
            builds[name] = self.backends[name].build(whole, target, folder / name, weights)
        segments = {
            entry: tuple(
                Segment(
                    backend=self.backends[name].name,
                    entry=part,
                    file=f"{name}/{builds[name].entries[part]}",
                    signature=_signature(model),
                    settings=builds[name].settings,
                )
                for name, part, model in found
            )
            for entry, found in order.items()
        }
        settings: dict[str, str] = {}
        for build in builds.values():
            settings |= {name: text for name, text in build.settings.items() if name == "isa"}
        return Build({entry: parts[0].file for entry, parts in segments.items()}, settings, segments)

    def _segments(
        self, program: Program, entry: str, owner: Owner, target: Target, first: set[str]
    ) -> list[tuple[str, str, ir.Model]]:
        """Owner, name and lowered model of each; those that give nothing are left out.

        The first of each owner is its ``main``, which every program has; ``first``: owners that have one.
        """
        found = []
        for number, segment in enumerate(cut(program, owner, entry)):
            if not segment.program.outputs():
                continue
            before = _names(segment.program.main)
            backend = self.backends[segment.owner]
            context = PassContext(target, partial(_supported, backend, target))
            passes = (*self.lowering[segment.owner], *CLEANUP)
            run_pipeline(segment.program, passes, context, [Verify()])
            if _names(segment.program.main) != before:
                raise InternalError(f"lowering changed the signature of segment {number} of {entry!r}")
            name = f"{entry}_{number}" if segment.owner in first else "main"
            first.add(segment.owner)
            found.append((segment.owner, name, segment.program.main))
        return found


def _supported(backend: Backend, target: Target, node: ir.Node) -> str | None:
    return backend.supports(node, target)


def _names(model: ir.Model) -> list[tuple[str, ir.DataType]]:
    called = _signature(model)
    return [(spec.name, spec.dtype) for spec in (*called.inputs, *called.outputs)]


def _signature(model: ir.Model) -> Entry:
    program = Program({"main": model})
    return Entry(program.inputs(), program.outputs())
