"""A program with state, run on whole sequences step by step to prove it equal to the uncached, and timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from ..compiler.closing import Closing
from ..compiler.errors import InternalError
from ..compiler.program import Decoding, TensorSpec
from ..compiler.reference import Array, Arrays
from .base import Runner

_SPARE = 4
"""Positions of capacity beyond the sequence, for what rows that are behind the others write past it."""


class StepwiseRunner(Closing):
    """Takes the inputs of ``main`` and continues them through the entry with state, without binding buffers.

    It owns the runners it is given. ``steps``: tokens that ``run_arrays`` writes after the prompt.
    """

    __slots__ = ("_decode", "_decoding", "_encode", "load_seconds", "steps")

    def __init__(
        self,
        decoding: Decoding,
        decode: Runner,
        encode: Runner | None = None,
        steps: int = 0,
    ) -> None:
        self._decoding = decoding
        self._decode = decode
        self._encode = encode
        self.steps = steps
        self.load_seconds = decode.load_seconds + (encode.load_seconds if encode is not None else 0.0)

    def logits(self, inputs: Mapping[str, Array]) -> Array:
        """Logits of all tokens, float[batch, sequence, vocabulary], from a prompt, a chunk and single steps.

        Rows advance at different speeds, so that positions, cache and masks of ragged rows are seen too.
        """
        tokens = np.asarray(inputs[self._decoding.tokens])
        batch, sequence = tokens.shape
        capacity = min(sequence + _SPARE, self._decoding.context or sequence + _SPARE)
        if capacity < sequence:
            raise InternalError(f"{sequence} tokens do not fit the context of {capacity}")
        constants, state = self._constants(inputs), self._state(batch, capacity)
        lengths = np.zeros(batch, np.int64)
        behind = np.arange(batch) % 3
        found: Array | None = None
        for size in _sizes(sequence):
            size = min(size, max(1, capacity - int(lengths.max())))
            # a row that would write beyond the context runs its last tokens once more
            starts = np.minimum(lengths, capacity - size)
            columns = starts[:, None] + np.arange(size)
            chunk = np.take_along_axis(tokens, np.minimum(columns, sequence - 1), 1)
            select = np.tile(np.arange(size), (batch, 1))
            logits = self._step(chunk, starts, select, state, constants)[self._decoding.logits]
            if found is None:
                found = np.zeros((batch, sequence, logits.shape[-1]), logits.dtype)
            ends = np.minimum(starts + size, np.maximum(lengths + size - behind, lengths + 1))
            ends = np.minimum(ends, sequence)
            for row, (start, length, end) in enumerate(zip(starts, lengths, ends, strict=True)):
                found[row, length:end] = logits[row, length - start : end - start]
            lengths = ends
            if lengths.min() == sequence:
                break
        return np.zeros((batch, sequence, self._decoding.vocabulary)) if found is None else found

    def check(self, inputs: Mapping[str, Any]) -> Arrays:
        """``inputs`` as arrays."""
        return {name: np.asarray(value) for name, value in inputs.items()}

    def run_arrays(self, arrays: Arrays) -> Arrays:
        """Prefill the prompts, then write ``steps`` tokens greedily; the last logits and tokens by name."""
        tokens = arrays[self._decoding.tokens]
        batch, prompt = tokens.shape
        constants, state = self._constants(arrays), self._state(batch, prompt + self.steps)
        lengths = np.zeros(batch, np.int64)
        last = np.full((batch, 1), prompt - 1)
        outputs = self._step(tokens, lengths, last, state, constants)
        for number in range(self.steps):
            token = outputs[self._decoding.next]
            outputs = self._step(token, lengths + prompt + number, np.zeros_like(last), state, constants)
        return {name: outputs[name] for name in (self._decoding.logits, self._decoding.next)}

    def _step(
        self, tokens: Array, lengths: Array, select: Array, state: dict[str, Array], constants: Arrays
    ) -> Arrays:
        roles = self._decoding
        feed = {roles.tokens: tokens, roles.lengths: lengths, roles.select: select}
        outputs = self._decode.run_arrays({**feed, **state, **constants})
        state.update((tensor.input, outputs[tensor.output]) for tensor in roles.state)
        return outputs

    def _state(self, batch: int, capacity: int) -> dict[str, Array]:
        specs = {spec.name: spec for spec in self._decode.inputs}
        return {t.input: _empty(specs[t.input], batch, capacity) for t in self._decoding.state}

    def _constants(self, inputs: Mapping[str, Array]) -> Arrays:
        """What the entry takes beside tokens and state: a source text, encoded, and its mask."""
        roles = self._decoding
        if self._encode is None:
            return {}
        source = self._encode.run_arrays({spec.name: inputs[spec.name] for spec in self._encode.inputs})
        taken = {spec.name for spec in self._decode.inputs}
        return {**source, **{name: inputs[name] for name in roles.encoder_inputs if name in taken}}

    def close(self) -> None:
        """Free the sessions."""
        with ExitStack() as stack:
            for runner in (self._decode, self._encode):
                if runner is not None:
                    stack.callback(runner.close)


def _sizes(sequence: int) -> Iterator[int]:
    """Half of the sequence, a quarter, single steps, and what is left."""
    yield max(1, sequence // 2)
    yield max(1, sequence // 4)
    yield from (1, 1, 1)
    while True:
        yield max(1, sequence)


def _empty(spec: TensorSpec, batch: int, capacity: int) -> Array:
    first, heads, _, width = spec.shape or ()
    rows = first if isinstance(first, int) else batch
    if not isinstance(heads, int) or not isinstance(width, int):
        raise InternalError(f"state {spec} has no fixed heads or width")
    return np.zeros((rows, heads, capacity, width), spec.dtype.numpy())
