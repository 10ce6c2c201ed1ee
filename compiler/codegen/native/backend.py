"""The native backend: C for every entry of a program, its weights packed, one shared library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from ...errors import Problem, UnsupportedError
from ...options import Target
from ...program import Program
from ...weights import WeightStore
from ..base import Build
from ..isa import isa_of
from .constants import Constants
from .entry import EntryWriter, Finished
from .functions import Functions
from .library import CODE, LIBRARY, WEIGHTS, build_library
from .program import program_text
from .sizes import Sizes
from .support import reason_against
from .tables import FINGERPRINT
from .toolchain import find_toolchain
from .weights_file import WeightFile


class NativeBackend:
    """Writes model.c, the kernels that it includes, model.weights, and the library that they make."""

    name = "native"

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self._seen: tuple[ir.Graph, int, Sizes] | None = None
        self._flags = tuple(flags)
        """Further ones for the C compiler: tests compile with fewer optimizations and more checks."""

    def supports(self, node: ir.Node, target: Target) -> str | None:
        """None if C can be emitted for ``node``, else the reason it can't."""
        if target.device != "cpu":
            return "native code is for CPUs"
        return reason_against(node, Constants(), self._sizes_of(node.graph))

    def _sizes_of(self, graph: ir.Graph | ir.Function | None) -> Sizes:
        """The sizes of a graph; asked for every node of it, they are kept while it stays as long as it is."""
        if not isinstance(graph, ir.Graph):
            return Sizes((), ())
        if self._seen is None or self._seen[0] is not graph or self._seen[1] != len(graph):
            self._seen = graph, len(graph), Sizes.of(graph)
        return self._seen[2]

    def build(self, program: Program, target: Target, folder: Path, weights: WeightStore) -> Build:
        """Write the program's files into ``folder``; the shared ``weights`` stay as they are.

        Raises: UnsupportedError naming what can't be emitted, ToolError without a C compiler, CompileError
        if it refuses.
        """
        isa = isa_of(target)
        toolchain = find_toolchain(isa)
        file, functions = WeightFile(), Functions()
        entries = emitted(program, file, functions)
        for name in _reading_order(program):
            for region in entries[name].regions():
                file.place(region)
        used = [text for name, text in functions.texts.items() if _is_called(name, entries)]
        text = program_text(program, entries, used, file, isa)
        fingerprint = file.write(folder / WEIGHTS, text)
        text = text.replace(f"{{{FINGERPRINT}}}", _bytes(fingerprint))
        (folder / CODE).write_text(text, encoding="utf-8")
        return Build(
            dict.fromkeys(program.entries, LIBRARY), build_library(folder, isa, toolchain, self._flags)
        )


def emitted(program: Program, weights: WeightFile, functions: Functions) -> dict[str, Finished]:
    """Every entry emitted. Raises: UnsupportedError with all nodes that can't be."""
    entries: dict[str, Finished] = {}
    problems: list[Problem] = []
    for name, model in program.entries.items():
        decoding = program.decoding if program.decoding and program.decoding.entry == name else None
        try:
            entry = EntryWriter(model.graph, weights, functions, decoding)
            for node in model.graph:
                entry.emit(node)
            entries[name] = entry.finish()
        except UnsupportedError as error:
            problems.extend(error.problems)
    if problems:
        raise UnsupportedError.of(list(dict.fromkeys(problems)))
    return entries


def _reading_order(program: Program) -> list[str]:
    """Entries, the one that runs most often first."""
    first = program.decoding.entry if program.decoding is not None else ""
    return sorted(program.entries, key=lambda name: name != first)


def _is_called(name: str, entries: dict[str, Finished]) -> bool:
    return any(f"{name}(" in step.code for finished in entries.values() for step in finished.steps)


def _bytes(data: bytes) -> str:
    rows = [", ".join(f"0x{b:02x}" for b in data[i : i + 16]) for i in range(0, len(data), 16)]
    return "{\n        " + ",\n        ".join(rows) + "}"
