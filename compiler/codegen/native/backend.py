"""The native backend: C for every entry of a program, its weights packed, one shared library."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from ...errors import CompileError, Problem, UnsupportedError
from ...ir.check_structure import place
from ...options import Target
from ...program import Program
from ...weights import WeightStore
from ..base import Build
from .constants import Constants
from .emit.base import CTYPES
from .emit.table import operator_of
from .entry import EntryWriter, Finished
from .functions import Functions
from .program import FINGERPRINT, program_text
from .targets import isa_of
from .toolchain import KERNELS, find_toolchain
from .weights_file import WeightFile

LIBRARY, WEIGHTS, CODE = "libmodel.so", "model.weights", "model.c"


class NativeBackend:
    """Writes model.c, the kernels that it includes, model.weights, and the library that they make."""

    name = "native"

    def supports(self, node: ir.Node, target: Target) -> str | None:
        """None if C can be emitted for ``node``, else the reason it can't."""
        if target.device != "cpu":
            return "native code is for CPUs"
        if node.op_type == "Constant" and node.domain == "":
            return None
        constants = Constants()
        if node.outputs and all(constants.holds(v) for v in node.outputs):
            return None  # computed when compiled
        operator = operator_of(node)
        if operator is None:
            return "no kernel is written for it"
        for value in (*node.inputs, *node.outputs):
            if value is not None and (value.uses() or value.is_graph_output()):
                reason = _unfit(value, constants)
                if reason is not None:
                    return reason
        return operator.reason(node)

    def build(self, program: Program, target: Target, folder: Path, weights: WeightStore) -> Build:
        """Write the program's files into ``folder``; the shared ``weights`` stay as they are.

        Raises: UnsupportedError naming what can't be emitted, ToolError without a C compiler, CompileError
        if it refuses.
        """
        isa = isa_of(target)
        toolchain = find_toolchain(isa)
        file, functions = WeightFile(), Functions()
        entries = emitted(program, target, self, file, functions)
        for name in _reading_order(program):
            for region in entries[name].regions():
                file.place(region)
        used = [text for name, text in functions.texts.items() if _is_called(name, entries)]
        text = program_text(program, entries, used, file, isa)
        fingerprint = file.write(folder / WEIGHTS, text)
        text = text.replace(f"{{{FINGERPRINT}}}", _bytes(fingerprint))
        (folder / CODE).write_text(text, encoding="utf-8")
        shutil.copytree(KERNELS, folder / "kernels", dirs_exist_ok=True)
        shutil.copytree(KERNELS.parent / "include", folder / "include", dirs_exist_ok=True)
        kernels = folder / "kernels"
        toolchain.library(isa, folder / LIBRARY, [folder / CODE], [kernels / "load.c", kernels / "state.c"])
        return Build(dict.fromkeys(program.entries, LIBRARY), {"weights": WEIGHTS, "isa": isa.name})


def emitted(
    program: Program, target: Target, backend: NativeBackend, weights: WeightFile, functions: Functions
) -> dict[str, Finished]:
    """Every entry emitted. Raises: UnsupportedError with all nodes that can't be."""
    problems: list[Problem] = []
    for model in program.entries.values():
        for node in model.graph:
            reason = backend.supports(node, target)
            if reason is not None:
                problems.append(Problem(place(node), reason))
    if problems:
        raise UnsupportedError.of(problems)
    entries: dict[str, Finished] = {}
    for name, model in program.entries.items():
        decoding = program.decoding if program.decoding and program.decoding.entry == name else None
        entry = EntryWriter(model.graph, weights, functions, decoding)
        for node in model.graph:
            operator = operator_of(node)
            if operator is None or all(entry.constants.holds(v) for v in node.outputs):
                continue
            try:
                entry.emit(node, operator.emit)
            except CompileError as error:
                problems.extend(error.problems)
                break
        else:
            entries[name] = entry.finish()
    if problems:
        raise UnsupportedError.of(problems)
    return entries


def _unfit(value: ir.Value, constants: Constants) -> str | None:
    if constants.holds(value):
        return None
    if value.dtype not in CTYPES:
        return f"{value.name!r} has dtype {value.dtype}"
    if value.shape is None:
        return f"the rank of {value.name!r} is unknown"
    return None


def _reading_order(program: Program) -> list[str]:
    """Entries, the one that runs most often first."""
    first = program.decoding.entry if program.decoding is not None else ""
    return sorted(program.entries, key=lambda name: name != first)


def _is_called(name: str, entries: dict[str, Finished]) -> bool:
    return any(f"{name}(" in code for finished in entries.values() for _, code in finished.code)


def _bytes(data: bytes) -> str:
    rows = [", ".join(f"0x{b:02x}" for b in data[i : i + 16]) for i in range(0, len(data), 16)]
    return "{\n        " + ",\n        ".join(rows) + "}"
