"""Decisions between backends, kept in the cache by all that they were measured on."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import replace

import onnx_ir as ir

from ..compiler.codegen.isa import features, isa_of
from ..compiler.codegen.native.toolchain import find_toolchain
from ..compiler.errors import CompileError
from ..compiler.ir.printer import print_program
from ..compiler.options import CompileOptions
from ..compiler.program import Program
from ..compiler.reference import Arrays
from ..compiler.weights import chunks
from ..runtime.conditions import conditions, cores, versions
from . import cache
from .decision import Decision, read

KIND = "choice"

METHOD = 1
"""Version of how backends are compared: another one measures again."""


def key_of(program: Program, options: CompileOptions, inputs: Arrays | None) -> str:
    """Hash of the imported program, its weights, the options, the machine and the versions.

    Options that change neither the code nor its speed are left out; of ``inputs`` the sizes count.
    """
    asked = replace(options, timing=1.0, verify=True, keep_source=None, numerics=False, strict=True, seed=0)
    sizes = sorted((name, str(a.dtype), a.shape) for name, a in (inputs or {}).items())
    here = conditions(options.target)
    machine = (here.cpu, here.cores, here.memory_bytes, here.gpu, platform.machine(), sorted(features()))
    tools = (versions(), _compiler(options))
    return cache.key_of(METHOD, _content(program), asked, cores(), sizes, machine, tools)


def recall(key: str) -> Decision | None:
    """What was decided for the same; None if it is not known."""
    return read(cache.read(KIND, key))


def remember(key: str, decision: Decision, program: Program) -> None:
    """Keep a decision between more than one."""
    if decision.contested and not decision.cached:
        cache.write(KIND, key, decision.to_json(), program.source.get("model", ""))


def _content(program: Program) -> str:
    content = hashlib.sha256(print_program(program).encode("utf-8", "surrogatepass"))
    seen: set[int] = set()
    for model in program.entries.values():
        for graph in model.graphs():
            for name, value in graph.initializers.items():
                tensor = value.const_value
                if tensor is None or id(tensor) in seen or tensor.dtype == ir.DataType.STRING:
                    continue
                seen.add(id(tensor))
                content.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
                for chunk in chunks(tensor):
                    content.update(chunk)
    return content.hexdigest()


def _compiler(options: CompileOptions) -> str:
    if options.target.device != "cpu":
        return ""
    try:
        return find_toolchain(isa_of(options.target)).version()
    except CompileError:
        return ""
