"""DeviceDecoder: Decoder over static buffers on a device; from step to step nothing but token ids crosses."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from ...compiler.errors import InternalError
from ...compiler.reference import Array
from ..device_memory import Buffer
from ..taps import AFTER
from .buckets import Bucket, Buckets
from .decoder import SHORTEST, capacity_for

CHUNK = 2048
"""Tokens of a prompt that one run takes: enough to fill a GPU, and activations stay bounded."""

_DRAFTS = 65


class DeviceDecoder:
    """As ``Decoder``, over a bucket of buffers whose addresses never change.

    A step's tokens and lengths are what the step before wrote on the device. The host reads the token ids;
    logits cross only if they are looked at: for a temperature, penalties or log-probabilities, where the
    host samples, as on the CPU. What the host changes (a sampled token, a row that has ended) is sent before
    the next run. Steps of a session that captures are replayed, one graph for each turn of a bucket; prompts
    and drafts run as they are. The state grows into the bucket of twice the
    capacity, by a copy on the device.
    """

    def __init__(
        self,
        buckets: Buckets,
        *,
        rows: int = 1,
        capacity: int = SHORTEST,
        constants: Mapping[str, Array] | None = None,
    ) -> None:
        self._buckets, self._roles, self._memory = buckets, buckets.decoding, buckets.memory
        self._held = [buckets.take(rows, capacity_for(capacity, self._roles.context))]
        # bindings over constants are no other decoder's
        self._give = weakref.finalize(self, _release, buckets, self._held, not constants)
        self._given = dict(constants or {})
        self._constants = {name: self._sent(name, array) for name, array in self._given.items()}
        self._turn = self._side = 0
        self.alive = np.ones(rows, np.int64)
        self._start()

    def _start(self) -> None:
        bucket = self._bucket
        for mirror in (*bucket.lengths, *bucket.tokens):
            mirror.array[...] = 0

    def _sent(self, name: str, array: Array) -> Buffer:
        buffer = self._memory.empty(array.shape, self._buckets.specs[name].dtype)
        self._memory.write(buffer, array)
        return buffer

    @property
    def _bucket(self) -> Bucket:
        return self._held[0]

    @property
    def rows(self) -> int:
        """Sequences that run together."""
        return self._bucket.rows

    @property
    def capacity(self) -> int:
        """Tokens of each row that the buffers have room for now."""
        return self._bucket.capacity

    @property
    def lengths(self) -> Array:
        """int64[rows]: tokens of each row that the state holds; shorten a row by lowering it."""
        return self._bucket.lengths[self._turn].array

    @lengths.setter
    def lengths(self, values: Array) -> None:
        self.lengths[...] = values

    @property
    def tokens(self) -> Array:
        """int64[rows, 1]: what the next ``step`` reads; waits for the run before."""
        return self._bucket.tokens[self._turn].array

    @property
    def logits(self) -> Array:
        """float[rows, vocabulary]: of each row's last token, copied from the device when first looked at."""
        return self._bucket.logits.array[:, 0]

    def prefill(self, row: int, ids: Sequence[int], chunk: int = CHUNK) -> None:
        """Append ``ids`` to ``row``; logits and greedy choice after the last one are there afterwards."""
        length = int(self.lengths[row])
        self.reserve(length + len(ids))
        bucket, source = self._bucket, np.asarray(ids, np.int64)
        size = min(chunk, len(source))
        tokens = bucket.mirrored("tokens", (1, _power(size)))
        tokens_out, side = bucket.tokens[self._turn], self._side
        for start in range(0, len(source), chunk):
            part = source[start : start + chunk]
            final = start + chunk >= len(source)
            tokens.array[0, : len(part)] = part
            bucket.begins.array[0], bucket.ends.array[0, 0] = length + start, len(part) - 1
            for mirror in (tokens, bucket.begins, bucket.ends, tokens_out):
                mirror.send()
            outputs = (bucket.logits.buffer, tokens_out.buffer) if final else None
            self._run(
                (row, row + 1), side, _flat(tokens.buffer, 1, len(part)), bucket.begins.buffer.rows(0, 1),
                _flat(bucket.ends.buffer, 1, int(final)),
                None if outputs is None else tuple(o.rows(row, row + 1) for o in outputs),
            )  # fmt: skip
            side = (side + 1) % len(bucket.sides)
        if side != self._side:
            for here, there in zip(bucket.sides[self._side], bucket.sides[side], strict=True):
                self._memory.gathered(there.rows(row, row + 1), here.rows(row, row + 1), [0])
        bucket.logits.written()
        tokens_out.written()
        self.lengths[row] = length + len(source)

    def prefill_together(self, prompts: Sequence[Sequence[int]]) -> None:
        """``prefill`` of all rows in one run, all empty: short prompts share a read of the weights.

        Where several rows have to fill their capacity, they do so in buffers of their own.
        """
        lengths = np.array([len(ids) for ids in prompts], np.int64)
        longest = int(lengths.max())
        self.reserve(longest)
        bucket = self._bucket
        tokens = bucket.mirrored("tokens", (1, _power(self.rows * longest)))
        table = tokens.array[0, : self.rows * longest].reshape(self.rows, longest)
        table[:] = 0
        for row, ids in zip(table, prompts, strict=True):
            row[: len(ids)] = ids
        bucket.begins.array[:], bucket.ends.array[:, 0] = 0, lengths - 1
        for mirror in (tokens, bucket.begins, bucket.ends):
            mirror.send()
        outputs = bucket.logits.buffer, bucket.tokens[self._turn].buffer
        apart = self._buckets.row_by_row and self.rows > 1 and longest not in (1, bucket.capacity)
        sides = self._buckets.sides(self.rows, longest) if apart else None
        self._run(
            (0, self.rows), 0 if apart else self._side, _flat(tokens.buffer, self.rows, longest),
            bucket.begins.buffer, bucket.ends.buffer, outputs, sides,
        )  # fmt: skip
        if sides is None:
            self._flip()
        else:
            for made, here in zip(sides[-1], bucket.sides[self._side], strict=True):
                self._memory.grown(made, here)
        bucket.logits.written()
        bucket.tokens[self._turn].written()
        self.lengths[:] = lengths

    def step(self) -> None:
        """Append each row's token of ``tokens`` to it; logits and the greedy choices are there afterwards."""
        longest = int(self.lengths.max())
        if longest >= self.capacity:
            self.reserve(longest + 1)
        bucket, turn = self._bucket, self._turn
        lengths, after = bucket.lengths[turn], bucket.lengths[1 - turn]
        tokens, following = bucket.tokens[turn], bucket.tokens[1 - turn]
        lengths.send()
        tokens.send()
        key = (turn, self._side)
        if key not in bucket.steps:
            bucket.first.send()
            binding = self._bound(
                (0, self.rows), self._side, tokens.buffer, lengths.buffer, bucket.first.buffer,
                (bucket.logits.buffer, following.buffer), after.buffer,
            )  # fmt: skip
            bucket.steps[key] = binding, None if self._given else self._buckets.graph()
        binding, graph = bucket.steps[key]
        self._memory.run(binding, graph)
        self._flip()
        self._turn = 1 - turn
        following.written()
        bucket.logits.written()
        after.became(lengths.array + 1)
        after.array[...] = lengths.array + self.alive

    def extend(self, ids: Sequence[int]) -> tuple[Array, Array]:
        """Run ``ids`` behind the only row; logits float[ids, vocabulary] and greedy choice after each."""
        self.reserve(int(self.lengths[0]) + len(ids))
        bucket, count = self._bucket, len(ids)
        tokens, select = (bucket.mirrored(use, (1, count)) for use in ("draft", "select"))
        following = bucket.mirrored("following", (1, count))
        dtype = self._buckets.specs[self._roles.logits].dtype
        logits = bucket.mirrored("logits", (1, count, self._roles.vocabulary), dtype)
        tokens.array[0], select.array[0] = ids, np.arange(count)
        lengths = bucket.lengths[self._turn]
        for mirror in (tokens, select, lengths):
            mirror.send()
        outputs = logits.buffer, following.buffer
        self._run((0, 1), self._side, tokens.buffer, lengths.buffer, select.buffer, outputs)
        self._flip()
        logits.written()
        following.written()
        found = logits.array[0], following.array[0]
        if count > _DRAFTS:
            for use in ("draft", "select", "following", "logits"):
                bucket.forget(use, count)
        return found

    def keep(self, rows: Sequence[int]) -> None:
        """Only ``rows`` from now on, in that order."""
        old = self._bucket
        facts = self.lengths[rows], self.tokens[rows], self.logits[rows], self.alive[rows]
        new = self._buckets.take(len(rows), old.capacity)
        for before, after in zip(old.sides[self._side], new.sides[0], strict=True):
            self._memory.gathered(before, after, rows)
        self._given = {name: array[rows].copy() for name, array in self._given.items()}
        self._constants = {name: self._sent(name, array) for name, array in self._given.items()}
        self._moved(new, facts[0], facts[1], facts[2])
        self.alive = facts[3]

    def reserve(self, tokens: int) -> None:
        """Room for ``tokens`` tokens in every row; what is held stays.

        Raises: DeviceError if there is no room on the device; then everything is as it was.
        """
        old = self._bucket
        if tokens <= old.capacity:
            return
        if self._roles.context is not None and tokens > self._roles.context:
            raise InternalError(f"{tokens} tokens in a context of {self._roles.context}")
        facts = self.lengths.copy(), self.tokens.copy(), self.logits.copy()
        new = self._buckets.take(old.rows, capacity_for(tokens, self._roles.context))
        for before, after in zip(old.sides[self._side], new.sides[0], strict=True):
            self._memory.grown(before, after)
        self._moved(new, *facts)

    def _moved(self, new: Bucket, lengths: Array, tokens: Array, logits: Array) -> None:
        old, self._held[0] = self._bucket, new
        if not self._given:
            self._buckets.give(old)
        self._turn = self._side = 0
        self._start()
        self.lengths[...], self.tokens[...], self.logits[...] = lengths, tokens, logits

    def _flip(self) -> None:
        self._side = (self._side + 1) % len(self._bucket.sides)

    def _run(
        self, rows: tuple[int, int], side: int, tokens: Buffer, lengths: Buffer, select: Buffer,
        outputs: Sequence[Buffer] | None, sides: Sequence[Sequence[Buffer]] | None = None,
    ) -> None:  # fmt: skip
        self._memory.run(self._bound(rows, side, tokens, lengths, select, outputs, sides=sides))

    def _bound(
        self, rows: tuple[int, int], side: int, tokens: Buffer, lengths: Buffer, select: Buffer,
        outputs: Sequence[Buffer] | None, after: Buffer | None = None,
        sides: Sequence[Sequence[Buffer]] | None = None,
    ) -> object:  # fmt: skip
        """Inputs and outputs of ``rows`` bound to where they lie; what is not bound is not returned.

        ``sides``: of the state, if it is not the bucket's.
        """
        roles, sides = self._roles, self._bucket.sides if sides is None else sides
        small = {roles.tokens: tokens, roles.lengths: lengths, roles.select: select}
        past = {s.input: b.rows(*rows) for s, b in zip(roles.state, sides[side], strict=True)}
        constants = {name: buffer.rows(*rows) for name, buffer in self._constants.items()}
        written = {s.output: b.rows(*rows) for s, b in zip(roles.state, sides[side - 1], strict=True)}
        if outputs is not None:
            written |= dict(zip((roles.logits, roles.next), outputs, strict=True))
        if after is not None:
            written[AFTER] = after
        return self._memory.bind(small | past | constants, written)


def _release(buckets: Buckets, held: list[Bucket], shared: bool) -> None:
    if shared:
        buckets.give(held[0])


def _flat(buffer: Buffer, rows: int, columns: int) -> Buffer:
    """The first rows × columns elements of a buffer."""
    return Buffer(buffer.owner, buffer.address, (rows, columns), buffer.dtype)


def _power(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()
