"""Runs the CUDA C++ that TVM writes on the CPU: tensor-core kernels are proved without a GPU.

The kernel's text is compiled by g++ against a small model of a block of threads (``cuda_on_cpu.h``); inline
PTX becomes calls of functions that do what the PTX ISA says of ldmatrix, mma.sync and cp.async. Types and
their conversions are CUDA's own headers'.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from miaotui.compiler.codegen.tvm.cuda_toolkit import find_nvcc, toolkit_of
from miaotui.compiler.codegen.tvm.kernels import Kernel
from miaotui.compiler.codegen.tvm.target import spelled
from miaotui.compiler.codegen.tvm.versions import require_tvm
from miaotui.compiler.options import Target
from support.once import once

Array = np.ndarray[Any, Any]
NUMPY = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "bool": np.bool_}

HERE, HEADER = Path(__file__).parent, "cuda_on_cpu.h"
FLAGS = ("-O0", "-std=c++17", "-w", "-fPIC")

_ASM = re.compile(r'__asm__ __volatile__\(\s*((?:"[^"]*"\s*)+):(.*?):(.*?)\);', re.DOTALL)
_OPERAND = re.compile(r'"=?[rf]"\((.*?)\)(?=\s*(?:,\s*"|$))', re.DOTALL)


def cuda_source(kernel: Kernel) -> str:
    """CUDA C++ of a kernel, without nvcc."""
    from tvm import tirx

    tvm = require_tvm()
    target = tvm.target.Target(spelled(Target("cuda", "sm_90")))
    with target:
        module = tvm.IRModule({kernel.name: kernel.function})
        built = tirx.build(module, target)
    sources = [m.inspect_source() for m in (built.mod if hasattr(built, "mod") else built).imports]
    return str(sources[0])


class OnCpu:
    """A kernel compiled for the CPU. ``shared``: bytes of shared memory that it may use."""

    def __init__(self, kernel: Kernel, folder: Path) -> None:
        text = cuda_source(kernel)
        self._name = f"{kernel.name}_kernel"
        self._shared = int(kernel.function.attrs["shared_memory"])
        # A declaration goes before; the definition is the last that names it.
        head = rf'extern "C" __global__ void __launch_bounds__\((\d+)\) {self._name}\(([^)]*)\) \{{'
        match = [*re.finditer(head, text)][-1]
        self.threads = int(match[1])
        self.parameters = [p.strip().split()[-1] for p in match[2].split(",")]
        types = [re.sub(r"__restrict__", "", p).rsplit(" ", 1)[0].strip() for p in match[2].split(",")]
        source, library = folder / f"{kernel.name}.cpp", folder / f"{kernel.name}.so"
        given = ", ".join(f"*({t} *)a[{n}]" for n, t in enumerate(types))
        source.write_text(
            '#include "cuda_on_cpu.h"\n'
            + translated(text[match.start() :])
            + f"\nstatic void call(void **a) {{ {self._name}({given}); }}\n"
            + 'extern "C" void run(void **a, int x, int y, int z, int threads, size_t shared) '
            + "{ run_grid(call, a, x, y, z, threads, shared); }\n"
        )
        subprocess.run(["g++", *FLAGS, "-shared", *included(), str(source), "-o", str(library)], check=True)
        self._run = ctypes.CDLL(str(library)).run

    def __call__(self, grid: Sequence[int], **arguments: Array | int) -> None:
        """Runs the blocks one after another. Arrays by the names of their parameters, sizes as int."""
        given = {}
        for name in self.parameters:
            value = arguments[name.removesuffix("_ptr")]
            given[name] = (
                ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_void_p(value.ctypes.data)
            )
        pointers = [ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in given.values()]
        self._run(
            (ctypes.c_void_p * len(pointers))(*pointers), *grid, self.threads, ctypes.c_size_t(self._shared)
        )


def included() -> list[str]:
    """Where ``cuda_on_cpu.h`` and CUDA's headers are found: compiled already, they take most of the time."""

    def compile_header(folder: Path) -> None:
        folder.mkdir()
        command = ["g++", *FLAGS, *plain, "-x", "c++-header", str(HERE / HEADER)]
        subprocess.run([*command, "-o", str(folder / f"{HEADER}.gch")], check=True)

    plain = [f"-I{HERE}", f"-I{toolkit_of(find_nvcc()) / 'include'}"]
    return [f"-I{once('cuda_on_cpu', compile_header)}", *plain]


def translated(text: str) -> str:
    """A kernel's CUDA C++ without PTX."""
    text = re.sub(
        r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];", r"\1 *\2 = (\1 *)shared_memory();", text
    )
    shared = "extern __shared__ __align__(128) unsigned char shared_array[];"
    text = text.replace(shared, "unsigned char *shared_array = shared_memory();")
    text = text.replace("unsigned int addr = __cvta_generic_to_shared(", "uintptr_t addr = (uintptr_t)(")
    text = re.sub(r"copies_but_(\d+)\(\)", r"wait_for_copies(\1)", text)
    return _ASM.sub(_call, text)


def _call(match: re.Match[str]) -> str:
    code, operands = match[1], [*_OPERAND.findall(match[2]), *_OPERAND.findall(match[3])]
    arguments = ", ".join(o.strip() for o in operands)
    if "ldmatrix.sync.aligned.m8n8.x4" in code:
        assert len(operands) == 5, match[0]
        return f"ldmatrix({'true' if '.trans' in code else 'false'}, {arguments});"
    if found := re.search(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(bf16|f16)\.\1\.f32", code):
        assert len(operands) == 14, match[0]
        return f"mma<{'nv_bfloat16' if found[1] == 'bf16' else 'half'}>({arguments});"
    raise AssertionError(f"unknown PTX: {code}")
