"""Decoder: the entry with state over bound buffers: prompts in chunks, then every row a token at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...compiler.errors import InternalError
from ...compiler.program import Decoding
from ...compiler.reference import Array
from ..base import KeepsState, Runner, State
from .buffers import StateBuffers, aligned

CHUNK = 512
"""Tokens of a prompt that one run takes: the activations of more than that fall out of the caches."""

SHORTEST = 64
"""Tokens that buffers have room for at least."""

_DRAFTS = 65
"""Tokens up to which ``extend`` keeps its buffers: logits of more are not worth the memory."""


@dataclass(slots=True)
class _Draft:
    """What ``extend`` binds for one count of tokens, by side of the state."""

    tokens: Array
    select: Array
    logits: Array
    following: Array
    bindings: dict[int, Any] = field(default_factory=dict)


class Decoder:
    """``rows`` sequences of different lengths, continued together. Nothing is copied between runs.

    ``lengths``: int64[rows], tokens of each row that the state holds; shorten a row by lowering it.
    ``alive``: int64[rows], 1 for rows that ``step`` advances, 0 for those that only wait.
    ``tokens``: int64[rows, 1], what the next ``step`` reads; every run leaves its own greedy choice there.
    ``logits``: float[rows, vocabulary] of the last token of each row.
    ``constants``: inputs that stay the same, by name, [rows, ...] each: an encoder's outputs.
    ``in_place``: past and present may be the same buffer.
    """

    def __init__(
        self,
        runner: Runner,
        decoding: Decoding,
        *,
        rows: int = 1,
        capacity: int = SHORTEST,
        in_place: bool = False,
        constants: Mapping[str, Array] | None = None,
    ) -> None:
        self._runner, self._roles = runner, decoding
        self._specs = {spec.name: spec for spec in (*runner.inputs, *runner.outputs)}
        self._constants = dict(constants or {})
        capacity = capacity_for(capacity, decoding.context)
        self._state: State = (
            runner.keep_state(decoding, rows, capacity)
            if isinstance(runner, KeepsState)
            else StateBuffers(decoding, runner.inputs, rows=rows, capacity=capacity, in_place=in_place)
        )
        self._allocate(rows)

    def _allocate(self, rows: int) -> None:
        width = self._roles.vocabulary
        self.lengths = np.zeros(rows, np.int64)
        self.alive = np.ones(rows, np.int64)
        self._logits = aligned((rows, 1, width), self._specs[self._roles.logits])
        self._tokens = [np.zeros((rows, 1), np.int64) for _ in range(2)]
        self._turn = 0
        self._first = np.zeros((rows, 1), np.int64)
        self._bindings: dict[tuple[int, ...], Any] = {}
        self._drafts: dict[int, _Draft] = {}

    @property
    def rows(self) -> int:
        """Sequences that run together."""
        return self._state.rows

    @property
    def capacity(self) -> int:
        """Tokens of each row that the buffers have room for now."""
        return self._state.capacity

    @property
    def tokens(self) -> Array:
        """int64[rows, 1]: what the next ``step`` reads."""
        return self._tokens[self._turn]

    @property
    def logits(self) -> Array:
        """float[rows, vocabulary]: of each row's last token."""
        return self._logits[:, 0]

    def prefill(self, row: int, ids: Sequence[int], chunk: int = CHUNK) -> None:
        """Append ``ids`` to ``row``; logits and greedy choice after the last one are there afterwards.

        Rows are filled one after another: each costs what it costs alone, and gives what it gives alone.
        """
        length = int(self.lengths[row])
        self._reserve(length + len(ids))
        side, made = self._state.side, {}
        past, rows = np.zeros(1, np.int64), slice(row, row + 1)
        source = np.asarray(ids, np.int64)
        none, last = np.zeros((1, 0), np.int64), np.zeros((1, 1), np.int64)
        for start in range(0, len(ids), chunk):
            part = source[None, start : start + chunk]
            past[0], final = length + start, start + chunk >= len(ids)
            last[0, 0] = part.shape[1] - 1
            key = (part.shape[1], side, final)
            if key not in made:
                tokens = np.zeros(part.shape, np.int64)
                outputs = (self._logits[rows], self.tokens[rows]) if final else None
                select = last if final else none
                made[key] = tokens, self._bound(rows, side, tokens, past, select, outputs)
            tokens, binding = made[key]
            tokens[:] = part
            self._runner.run_bound(binding)
            side = (side + 1) % len(self._state.sides)
        self._state.settle(row, side)
        self.lengths[row] = length + len(ids)

    def prefill_together(self, prompts: Sequence[Sequence[int]]) -> None:
        """``prefill`` of all rows in one run, all empty: short prompts share a read of the weights.

        Behind the shorter ones stands what no query sees and later tokens write over.
        """
        lengths = np.array([len(ids) for ids in prompts], np.int64)
        self._reserve(int(lengths.max()))
        tokens = np.zeros((self.rows, lengths.max()), np.int64)
        for row, ids in zip(tokens, prompts, strict=True):
            row[: len(ids)] = ids
        outputs, empty = (self._logits, self.tokens), np.zeros(self.rows, np.int64)
        last = lengths[:, None] - 1
        self._runner.run_bound(
            self._bound(slice(0, self.rows), self._state.side, tokens, empty, last, outputs)
        )
        self._state.flip()
        self.lengths[:] = lengths

    def step(self) -> None:
        """Append each row's token of ``tokens`` to it; logits and the greedy choices are there afterwards."""
        longest = self.lengths.item(0) if self.rows == 1 else int(self.lengths.max())
        if longest >= self._state.capacity:
            self._reserve(longest + 1)
        key = (self._turn, self._state.side)
        binding = self._bindings.get(key)
        if binding is None:
            outputs = self._logits, self._tokens[1 - self._turn]
            binding = self._bindings[key] = self._bound(
                slice(0, self.rows), self._state.side, self.tokens, self.lengths, self._first, outputs
            )
        self._runner.run_bound(binding)
        self._state.flip()
        self._turn = 1 - self._turn
        self.lengths += self.alive

    def extend(self, ids: Sequence[int]) -> tuple[Array, Array]:
        """Run ``ids`` behind the only row; logits float[ids, vocabulary] and greedy choice after each.

        Both are views that the next call writes over. ``lengths`` stays: raise it by what is to be kept.
        """
        self._reserve(int(self.lengths[0]) + len(ids))
        draft = self._drafts.get(len(ids)) or self._draft(len(ids))
        draft.tokens[0] = ids
        binding = draft.bindings.get(self._state.side)
        if binding is None:
            outputs = draft.logits, draft.following
            binding = draft.bindings[self._state.side] = self._bound(
                slice(0, 1), self._state.side, draft.tokens, self.lengths, draft.select, outputs
            )
        self._runner.run_bound(binding)
        self._state.flip()
        return draft.logits[0], draft.following[0]

    def _draft(self, count: int) -> _Draft:
        logits = aligned((1, count, self._roles.vocabulary), self._specs[self._roles.logits])
        select = np.arange(count)[None]
        draft = _Draft(np.zeros((1, count), np.int64), select, logits, np.zeros_like(select))
        if count <= _DRAFTS:
            self._drafts[count] = draft
        return draft

    def keep(self, rows: Sequence[int]) -> None:
        """Only ``rows`` from now on, in that order."""
        lengths, tokens, alive = self.lengths[rows], self.tokens[rows], self.alive[rows]
        logits = self._logits[rows]
        self._state.keep(rows)
        self._constants = {name: array[rows].copy() for name, array in self._constants.items()}
        self._allocate(len(rows))
        self.lengths[:], self.tokens[:], self.alive[:], self._logits[:] = lengths, tokens, alive, logits

    def reserve(self, tokens: int) -> None:
        """Room for ``tokens`` tokens in every row, so that it is not made step by step."""
        self._reserve(tokens)

    def _reserve(self, tokens: int) -> None:
        if tokens <= self._state.capacity:
            return
        if self._roles.context is not None and tokens > self._roles.context:
            raise InternalError(f"{tokens} tokens in a context of {self._roles.context}")
        self._state.grow(capacity_for(tokens, self._roles.context))
        self._bindings.clear()
        self._drafts.clear()

    def _bound(
        self,
        rows: slice,
        side: int,
        tokens: Array,
        lengths: Array,
        select: Array,
        outputs: tuple[Array, Array] | None,
    ) -> Any:
        """Inputs and outputs of ``rows`` bound to where they lie; what is not bound is not returned."""
        state, roles = self._state, self._roles
        small = {roles.tokens: tokens, roles.lengths: lengths, roles.select: select}
        past = {t.input: b[rows] for t, b in zip(roles.state, state.sides[side], strict=True)}
        constants = {name: array[rows] for name, array in self._constants.items()}
        written = {t.output: b[rows] for t, b in zip(roles.state, state.sides[side - 1], strict=True)}
        if outputs is not None:
            written |= dict(zip((roles.logits, roles.next), outputs, strict=True))
        return self._runner.bind(small | past | constants, written)


def capacity_for(tokens: int, context: int | None) -> int:
    """The power of two that ``tokens`` fit in, at most the context."""
    power = 1 << (max(tokens, SHORTEST) - 1).bit_length()
    return power if context is None else min(power, context)
