"""Drives the cached entry of a program as native code, built for the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from miaotui.compiler.program import Program
from miaotui.runtime.native import NativeRunner
from support.native_programs import build, opened
from support.stepping import Array, Stepper

FLAGS = ("-O1",)


class NativeStepper(Stepper):
    """A Stepper over a native library. ``encode``: its runner for the source text, if it has one."""

    def __init__(self, program: Program, decode: NativeRunner, encode: NativeRunner | None) -> None:
        assert program.decoding is not None
        self.decoding, self.encode = program.decoding, encode
        self.session, self._runner = self, decode
        self.shapes = {spec.name: spec.shape for spec in decode.inputs}
        self.dtype = next(s.dtype for s in decode.inputs if s.name == program.decoding.state[0].input).numpy()
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
    build(small, folder, FLAGS)
    with ExitStack() as stack:
        runners = [stack.enter_context(opened(small, folder, name, threads)) for name in names]
        yield NativeStepper(small, runners[0], runners[1] if len(runners) > 1 else None)
