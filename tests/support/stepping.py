"""Drives an entry with state step by step on plain ONNX Runtime: numpy in, numpy out, no IO binding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from miaotui.compiler.ir.verify import verify
from miaotui.compiler.options import CompileOptions
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.pipeline import pipeline
from support.rewriting import ort_run

Array = np.ndarray[Any, Any]


def lowered(program: Program, **options: Any) -> Program:
    """``program`` after the whole pipeline, verified at its end."""
    made = program.clone()
    for step in pipeline(CompileOptions(**options)):
        step.run(made, PassContext())
    verify(made)
    return made


class Stepper:
    """Runs ``program.decoding.entry`` for rows of different lengths; the state starts as garbage."""

    dtype: Any = np.float32

    def __init__(self, program: Program) -> None:
        import onnxruntime as ort

        assert program.decoding is not None
        self.decoding = program.decoding
        settings = ort.SessionOptions()
        settings.log_severity_level, settings.intra_op_num_threads = 3, 1
        model = ir.to_proto(program.entries[self.decoding.entry]).SerializeToString()
        self.session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        self.shapes = {i.name: i.shape for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]

    def start(self, batch: int, capacity: int = 96, extra: Mapping[str, Array] | None = None) -> None:
        """Forget everything; ``extra``: inputs that are the same in every step."""
        self.lengths, self.extra = np.zeros(batch, np.int64), dict(extra or {})
        self.state = {
            name: np.full((batch, self.shapes[name][1], capacity, self.shapes[name][3]), 7.5, self.dtype)
            for name in (tensor.input for tensor in self.decoding.state)
        }

    def step(self, rows: Sequence[Sequence[int]], select: Any = None) -> tuple[Array, Array]:
        """Logits and next tokens at ``select``, by default at each row's last token."""
        d = self.decoding
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        chosen = np.asarray([[len(r) - 1] for r in rows] if select is None else select, np.int64)
        feeds = {d.tokens: ids, d.lengths: self.lengths, d.select: chosen, **self.state, **self.extra}
        found = dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))
        self.state = {tensor.input: found[tensor.output] for tensor in d.state}
        self.lengths = self.lengths + np.array([len(r) for r in rows])
        return found[d.logits], found[d.next]

    def greedy(self, prompts: Sequence[Sequence[int]], count: int, **start: Any) -> list[list[int]]:
        """The next ``count`` tokens of every prompt."""
        self.start(len(prompts), **start)
        made: list[list[int]] = [[] for _ in prompts]
        rows = [list(p) for p in prompts]
        for _ in range(count):
            _, following = self.step(rows)
            rows = [[int(n)] for n in following[:, -1]]
            for row, new in zip(made, rows, strict=True):
                row += new
        return made


def whole_logits(program: Program, ids: Sequence[int]) -> Array:
    """Logits [tokens, vocabulary] of ``main`` for one row, other inputs at their defaults."""
    feeds: dict[str, Array] = {}
    for value in program.main.graph.inputs:
        name, row = str(value.name), np.asarray([ids], np.int64)
        assert value.dtype is not None
        if "mask" in name:
            row = np.ones_like(row)
        elif "position" in name:
            row = np.arange(len(ids))[None]
        feeds[name] = row.astype(value.dtype.numpy())
    outputs = ort_run(program, feeds)
    return outputs[next(name for name, v in outputs.items() if v.ndim == 3)][0]


def assert_steps_equal_whole(
    program: Program, length: int = 24, tolerance: float = 2e-5, stepper: Stepper | None = None
) -> None:
    """Logits of ragged prefill, chunks, single tokens, and after a cut-back, equal those of ``main``.

    ``program``: with the entry derived and lowered. ``stepper``: another that runs the entry.
    """
    assert program.decoding is not None
    stepper, random = stepper or Stepper(program), np.random.default_rng(0)
    texts = random.integers(0, program.decoding.vocabulary, (3, length))
    wanted = np.stack([whole_logits(program, text.tolist()) for text in texts])

    def check(got: Array, row: int, place: int) -> None:
        reference = wanted[row, place]
        error = np.abs(got - reference).max() / max(1.0, np.abs(reference).max())
        assert error < tolerance, f"row {row}, position {place}: scaled error {error:.1e}"

    stepper.start(3, capacity=length + 8)
    chunks = [(5, 1, 3), (0, 0, 0), (1, 1, 1), (4, 7, 2), (1, 1, 1)]
    done = np.zeros(3, np.int64)
    for sizes in chunks:
        if not any(sizes):
            continue
        rows = [texts[r, done[r] : done[r] + n].tolist() for r, n in enumerate(sizes)]
        logits, _ = stepper.step(rows)
        done += sizes
        for row in range(3):
            check(logits[row, 0], row, done[row] - 1)
    stepper.lengths, done = stepper.lengths - 1, done - 1  # take the last token of each row back
    logits, following = stepper.step(
        [texts[r, done[r] : done[r] + 3].tolist() for r in range(3)], [[0, 2, 1]] * 3
    )
    assert np.array_equal(following, logits.argmax(-1))
    for row in range(3):
        for place, offset in enumerate((0, 2, 1)):
            check(logits[row, place], row, done[row] + offset)
    stepper.start(1, capacity=length)
    stepper.step([texts[0, :-1].tolist()], np.zeros((1, 0)))
    check(stepper.step([texts[0, -1:].tolist()])[0][0, 0], 0, length - 1)
