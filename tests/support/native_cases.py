"""Graphs as native code, many in one library, every buffer an array of its own: what emitters' tests run."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import onnx_ir as ir
from miaotui.compiler.codegen.native.emit.base import CTYPES, Size, View, row_major
from miaotui.compiler.codegen.native.emit.copies import copied
from miaotui.compiler.codegen.native.emit.table import operator_of
from miaotui.compiler.codegen.native.sizes import Sizes
from miaotui.compiler.codegen.native.toolchain import Toolchain, find_toolchain
from miaotui.compiler.codegen.native.views import contiguous
from miaotui.compiler.errors import UnsupportedError
from miaotui.compiler.ir.constants import constant_tensor
from support.quick_c import quick

Arrays = Mapping[str, np.ndarray[Any, Any]]

FLAGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-variable", "-Wno-unused-parameter")
HEADERS = ("program.h", "elementwise.h", "norm.h", "rows.h", "lookup.h", "matmul.h", "rotate.h", "argmax.h")

_HARNESS = """
typedef void (*case_function)(worker *w, call *run, int step);
static const case_function cases[] = {%s};
static const int step_counts[] = {%s};

const char *run_case(int which, int workers, const int64_t *sizes, void *const *tensors);
const char *run_case(int which, int workers, const int64_t *sizes, void *const *tensors)
{
    static unsigned char memory[1 << 20] __attribute__((aligned(64)));
    call run = {.sizes = sizes, .tensors = tensors};
    for (int step = 0; step < step_counts[which]; step++)
        for (int index = 0; index < workers; index++) {
            worker w = {.index = index, .count = workers, .scratch = memory, .shared = memory + (1 << 19)};
            cases[which](&w, &run, step);
        }
    return run.error;
}
"""


@dataclass(frozen=True)
class Buffer:
    name: str
    dtype: ir.DataType
    shape: tuple[Size, ...]
    fill: np.ndarray[Any, Any] | None = None


class CaseEntry:
    """An Entry that gives every value memory of its own."""

    def __init__(self, model: ir.Model, names: Sizes) -> None:
        self.names = names
        self.views: dict[ir.Value, View] = {}
        self.buffers: list[Buffer] = []
        self.steps: list[str] = []
        self.functions: list[str] = []
        for value in model.graph.inputs:
            if not value.is_initializer():
                self._buffer(value, f"in_{len(self.buffers)}", self.sizes(value))

    def _buffer(
        self, value: ir.Value, name: str, shape: tuple[Size, ...], fill: np.ndarray[Any, Any] | None = None
    ) -> View:
        assert value.dtype is not None
        self.buffers.append(Buffer(name, value.dtype, shape, fill))
        self.views[value] = contiguous(name, CTYPES[value.dtype], shape)
        return self.views[value]

    def sizes(self, value: ir.Value) -> tuple[Size, ...]:
        shape = self.names.shape(value)
        if shape is None or any(size is None for size in shape):
            raise UnsupportedError(f"value {value.name}", f"shape {value.shape} is not known")
        return tuple(size for size in shape if size is not None)

    def view(self, value: ir.Value) -> View:
        return self.views[value] if value in self.views else self.constant(value)

    def constant(self, value: ir.Value) -> View:
        tensor = constant_tensor(value)
        assert tensor is not None, value
        array = np.ascontiguousarray(tensor.numpy())
        return self._buffer(value, f"constant_{len(self.buffers)}", array.shape, array)

    def contiguous(self, value: ir.Value) -> View:
        view = self.view(value)
        return view if view.is_contiguous else self._copy(value)

    def output(self, value: ir.Value) -> str:
        """Copy an output into a buffer of its own, and that buffer's name."""
        return self._copy(value).pointer

    def _copy(self, value: ir.Value) -> View:
        view = self.view(value)
        assert value.dtype is not None
        name = f"copy_{len(self.buffers)}"
        self.buffers.append(Buffer(name, value.dtype, view.shape))
        copy = contiguous(name, view.ctype, view.shape)
        self.steps.append(copied(view, copy))
        return copy

    def new(self, value: ir.Value, strides: Sequence[Size] | None = None) -> View:
        view = self._buffer(value, f"value_{len(self.buffers)}", self.sizes(value))
        assert strides is None or tuple(strides) == row_major(view.shape)
        return view

    def over(self, value: ir.Value, old: ir.Value, strides: Sequence[Size] | None = None) -> View:
        return self.new(value, strides)

    def alias(self, value: ir.Value, view: View) -> None:
        self.views[value] = view

    def step(self, node: ir.Node, code: str) -> None:
        self.steps.append(code)

    def function(self, name: str, text: str) -> str:
        unique = f"{name}_{len(self.functions)}"
        self.functions.append(text.replace("NAME", unique))
        return unique

    def packed(self, values: Sequence[ir.Value]) -> Any:
        raise NotImplementedError

    def is_packed(self, value: ir.Value) -> bool:
        return False

    def scratch(self, worker: Size, shared: Size) -> None:
        pass


class Case:
    """One graph: its C, and how it is called. Raises: UnsupportedError for what has no emitter."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.names = Sizes.of(model.graph)
        operators = []
        for node in model.graph:
            operator = operator_of(node)
            reason = "it is not known" if operator is None else operator.reason(node)
            if operator is None or reason is not None:
                raise UnsupportedError(f"operator {node.op_type}", str(reason))
            operators.append(operator)
        self.entry = CaseEntry(model, self.names)
        for node, operator in zip(model.graph, operators, strict=True):
            operator.emit(node, self.entry)
        self.outputs = {str(value.name): self.entry.output(value) for value in model.graph.outputs}

    def function(self, name: str) -> str:
        lines = [f"    int64_t {n} = run->sizes[{i}];" for i, n in enumerate(self.names.spelled)]
        for place, buffer in enumerate(self.entry.buffers):
            ctype = CTYPES[buffer.dtype]
            lines.append(f"    {ctype} *{buffer.name} = run->tensors[{place}];")
        lines += ["    switch (step) {"]
        for place, code in enumerate(self.entry.steps):
            lines += [f"    case {place}:", indent(code, " " * 8), "        break;"]
        head = f"static void {name}(worker *w, call *run, int step)"
        return "\n".join([*self.entry.functions, head, "{", *lines, "    }", "}", ""])

    def symbols(self, inputs: Arrays) -> dict[str, int]:
        found: dict[str, int] = {}
        for value in self.model.graph.inputs:
            if value.is_initializer():
                continue
            for dim, size in zip(value.shape or (), inputs[str(value.name)].shape, strict=True):
                if not isinstance(dim, int):
                    found[self.names.spelled[self.names.names.index(str(dim.value))]] = size
        return found


class Library:
    """Cases in one library."""

    def __init__(self, cases: Sequence[Case], folder: Path, tools: Toolchain | None = None) -> None:
        self.cases = cases
        names = [f"case_{i}" for i in range(len(cases))]
        text = "".join(f'#include "{header}"\n' for header in HEADERS)
        text += "".join(case.function(name) for case, name in zip(cases, names, strict=True))
        text += _HARNESS % (", ".join(names), ", ".join(str(len(c.entry.steps)) for c in cases))
        source, library = folder / "cases.c", folder / "cases.so"
        source.write_text(text)
        flags = [*quick(tools), *FLAGS, *os.environ.get("MIAOTUI_TEST_CFLAGS", "").split()]
        (tools or find_toolchain()).compile([source], library, flags)
        self._call = ctypes.CDLL(str(library)).run_case
        self._call.restype = ctypes.c_char_p

    def run(self, which: int, inputs: Arrays, workers: int = 1) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name. Raises: ValueError with the sentence that a step refused."""
        case = self.cases[which]
        symbols = case.symbols(inputs)

        def number(size: Size) -> int:
            if isinstance(size, int):
                return size
            text = size.replace(" / ", " // ")
            return int(eval(text, {"min64": min, "max64": max}, dict(symbols)))

        given = [inputs[str(v.name)] for v in case.model.graph.inputs if not v.is_initializer()]
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for place, buffer in enumerate(case.entry.buffers):
            shape = [number(s) for s in buffer.shape]
            dtype = buffer.dtype.numpy()
            if place < len(given):
                array = np.ascontiguousarray(given[place].astype(dtype)).reshape(shape)
            elif buffer.fill is not None:
                array = buffer.fill
            else:
                array = np.full(math.prod(shape) * dtype.itemsize, 0xAB, np.uint8).view(dtype).reshape(shape)
            arrays[buffer.name] = array
        sizes = np.array([symbols[n] for n in case.names.spelled] or [0], np.int64)
        pointers = (ctypes.c_void_p * max(1, len(arrays)))(*(a.ctypes.data for a in arrays.values()))
        error = self._call(which, workers, ctypes.c_void_p(sizes.ctypes.data), pointers)
        if error is not None:
            raise ValueError(error.decode())
        return {name: arrays[buffer] for name, buffer in case.outputs.items()}
