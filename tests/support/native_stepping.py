"""Drives the cached entry of a program as native code, built for the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.options import CompileOptions
from miaotui.compiler.program import Decoding, Program
from miaotui.passes.base import PassContext
from miaotui.passes.pipeline import stages
from miaotui.runtime.native import NativeRunner
from support.language_models import VOCABULARY
from support.native_programs import build, opened
from support.numerics import scaled_error
from support.quick_c import plain
from support.stepping import Array, Stepper


class NativeStepper(Stepper):
    """A Stepper over a native library. ``encode``: its runner for the source text, if it has one."""

    def __init__(self, decoding: Decoding, decode: NativeRunner, encode: NativeRunner | None = None) -> None:
        self.decoding, self.encode = decoding, encode
        self.session, self._runner = self, decode
        self.shapes = {spec.name: spec.shape for spec in decode.inputs}
        self.dtype = next(s.dtype for s in decode.inputs if s.name == decoding.state[0].input).numpy()
        self.outputs = [spec.name for spec in decode.outputs]

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """As a session of ONNX Runtime does."""
        found = self._runner.run(feeds)
        return [found[name] for name in names]


@contextmanager
def native_stepper(program: Program, folder: Path, threads: int = 1) -> Iterator[NativeStepper]:
    """``program``, lowered for native code, built without its uncached entry."""
    decoding = program.decoding
    assert decoding is not None
    names = [name for name in (decoding.entry, decoding.encoder) if name is not None]
    small = replace(program, entries={name: program.entries[name] for name in names})
    build(small, folder, plain())
    with ExitStack() as stack:
        runners = [stack.enter_context(opened(small, folder, name, threads)) for name in names]
        yield NativeStepper(decoding, runners[0], runners[1] if len(runners) > 1 else None)


def example(program: Program, entry: str) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of an entry: three rows, of which those over a cache hold different lengths."""
    random = np.random.default_rng(1)
    sizes: dict[str, int] = {"batch": 3, "tokens": 4, "capacity": 20, "selected": 2}
    made = {}
    for spec in program.inputs(entry):
        shape = [d if isinstance(d, int) else sizes.setdefault(str(d), 7) for d in spec.shape or ()]
        if spec.name == "past_lengths":
            array = np.array([3, 9, 0])
        elif spec.name == "select":
            array = np.array([[0, 3], [1, 2], [3, 3]])
        elif "mask" in spec.name:
            held = np.array([5, 7, 4]).reshape(3, *[1] * (len(shape) - 1))
            array = np.broadcast_to(np.arange(shape[-1]) < held, shape)
        elif "ids" in spec.name:
            array = random.integers(2, VOCABULARY, shape)
        else:
            array = random.standard_normal(shape)
        made[spec.name] = array.astype(spec.dtype.numpy())
    return made


def assert_lowered_alike(standard: Program, native: Program) -> None:
    """Every entry computes what it computed before it was lowered."""
    for entry in native.entries:
        inputs = example(native, entry)
        expected, got = (evaluate(p.entries[entry], inputs) for p in (standard, native))
        for name, array in expected.items():
            assert scaled_error(got[name], array) < 1e-5, f"{entry}: {name}"


def unlowered(program: Program) -> Program:
    """The same passes but the last, which bring it into a backend's operators."""
    made = program.clone()
    for stage in stages(CompileOptions(backend="native")):
        if stage.required:
            break
        for step in stage.passes if stage.on else ():
            step.run(made, PassContext())
    return made
