"""A Llama of two layers as native code: lowered once in every precision, built for any instruction set."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from miaotui.compiler.codegen.isa import Isa
from miaotui.compiler.codegen.native.backend import NativeBackend
from miaotui.compiler.codegen.native.library import BASELINE, CODE, LIBRARY, WEIGHTS
from miaotui.compiler.codegen.native.toolchain import Toolchain
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import CompileOptions, Precision, Target
from miaotui.compiler.program import Program
from miaotui.compiler.weights import WeightStore
from miaotui.passes.base import PassContext
from miaotui.passes.observers import run_pipeline
from miaotui.passes.pipeline import pipeline
from miaotui.runtime.generate.decoder import Decoder
from miaotui.runtime.native import NativeModel, NativeRunner
from support.language_models import DECODERS, build, imported
from support.quick_c import plain

DOUBTFUL = {"fp32": 1e-3, "int4": 0.03}
"""Distances of logits (deviation 1) that another order of sums or one rounded code may turn."""

PROMPT = [199, 197, 157, 239, 77, 215, 80, 241, 81, 48, 190]
"""All 24 tokens behind it are clear in both precisions."""


@functools.cache
def lowered(precision: Precision = "fp32") -> Program:
    """The program in native operators, without its uncached entry; leave it as it is."""
    program = imported(build(*DECODERS["llama"]))
    options = CompileOptions(backend="native", precision=precision)
    backend = NativeBackend()
    context = PassContext(options.target, lambda node: backend.supports(node, options.target))
    run_pipeline(program, pipeline(options), context, [])
    assert program.decoding is not None
    entry = program.decoding.entry
    return replace(program, entries={entry: program.entries[entry]})


def written(folder: Path, target: Target, precision: Precision = "fp32") -> Path:
    """All files of the variant, compiled for ``target`` in little time."""
    folder.mkdir(parents=True, exist_ok=True)
    NativeBackend(plain()).build(lowered(precision), target, folder, WeightStore(folder / "unused.bin"))
    return folder


def emitted(folder: Path, target: Target, precision: Precision = "fp32") -> Path:
    """The same without the library."""
    with patch.object(Toolchain, "library"):
        return written(folder, target, precision)


def compiled(folder: Path, isa: Isa, compiler: Toolchain, flags: Sequence[str] = ()) -> None:
    """The library of emitted files."""
    runtime = [folder / "kernels" / name for name in BASELINE]
    compiler.library(isa, folder / LIBRARY, [folder / CODE], runtime, flags)


def model(folder: Path, precision: Precision = "fp32") -> NativeModel:
    """What a runner of its entry with state is opened from."""
    program = lowered(precision)
    decoding = program.decoding
    assert decoding is not None
    signature = Entry(program.inputs(decoding.entry), program.outputs(decoding.entry))
    state = {tensor.input: tensor.output for tensor in decoding.state}
    return NativeModel(folder / LIBRARY, folder / WEIGHTS, signature, decoding.entry, state)


def tokens(
    opened: NativeModel, precision: Precision = "fp32", count: int = 24, threads: int = 2
) -> list[int]:
    """What it writes greedily behind ``PROMPT``."""
    return [token for token, _ in steps(opened, precision, count, threads)]


def clear_tokens(opened: NativeModel, precision: Precision = "fp32") -> list[int]:
    """The same up to the first choice that a rounding elsewhere could turn."""
    clear = itertools.takewhile(lambda step: step[1] > DOUBTFUL[precision], steps(opened, precision, 24, 2))
    found = [token for token, _ in clear]
    assert len(found) >= 12
    return found


def steps(opened: NativeModel, precision: Precision, count: int, threads: int) -> Iterator[tuple[int, float]]:
    """Each token that it writes, and how far its logit stands above the next."""
    program = lowered(precision)
    assert program.decoding is not None
    with NativeRunner(opened, threads) as runner:
        decoder = Decoder(runner, program.decoding, in_place=True)
        decoder.prefill(0, PROMPT)
        for _ in range(count):
            second, best = np.sort(decoder.logits[0])[-2:]
            assert np.isfinite(best)
            yield int(decoder.tokens[0, 0]), float(best - second)
            decoder.step()
