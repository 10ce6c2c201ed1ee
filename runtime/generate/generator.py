"""Generator: prompts in, text out, over the entry with state of one variant of an executable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from ...compiler.artifact import Artifact
from ...compiler.errors import InputError, ToolError
from ...compiler.reference import Array, Arrays
from ..base import OnDevice, Runner
from ..row_by_row import is_row_by_row
from ..text import Tokenizer
from .buckets import Buckets
from .decoder import CHUNK, Decoder
from .defaults import Defaults
from .device_decoder import DeviceDecoder
from .encoder import can_pad, constants, encoded
from .options import GenerationOptions, Policy
from .prompts import Prompts
from .protocol import TokenDecoder
from .result import Generation
from .row import Row
from .stream import Stream, result_of
from .support import decoding_of, is_in_place
from .timings import Stopwatch
from .writing import fits_together, write

ROWS = 8
"""Prompts that are continued together: more of them share each read of the weights, and take more memory."""

_AHEAD = 256
"""New tokens that buffers have room for from the start."""


class Generator:
    """Continues prompts. ``open_runner`` gives the runner of an entry by its name.

    Raises: UnsupportedError if the variant keeps no state between tokens, with the reason.
    """

    def __init__(self, artifact: Artifact, variant: str | None, open_runner: Callable[[str], Runner]) -> None:
        name, record = artifact.variant(variant)
        self.decoding = decoding_of(artifact.manifest, name)
        self._artifact, self._open, self._in_place = artifact, open_runner, is_in_place(record)
        self._row_by_row = is_row_by_row(record)
        self._spare: TokenDecoder | None = None
        self._lock = threading.Lock()

    @property
    def runner(self) -> Runner:
        """Of the entry with state."""
        return self._open(self.decoding.entry)

    @cached_property
    def _buckets(self) -> Buckets:
        """Buffers on the runner's device, shared by all its decoders."""
        runner = self.runner
        assert isinstance(runner, OnDevice)
        specs = (*runner.inputs, *runner.outputs)
        return Buckets(
            runner.memory, self.decoding, specs, in_place=self._in_place, row_by_row=self._row_by_row
        )

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The executable's; None if it has none. Raises: ModelError if it is damaged or another model's."""
        has_one = "tokenizer/tokenizer.json" in self._artifact.manifest.files
        return Tokenizer.open(self._artifact) if has_one else None

    @cached_property
    def defaults(self) -> Defaults:
        """What the model's generation_config.json says; the tokenizer's end tokens where it names none."""
        eos = () if self.tokenizer is None else tuple(sorted(self.tokenizer.eos_ids))
        return Defaults.of_folder(self._artifact.folder).with_eos(eos)

    def generate(
        self, prompt: object, options: GenerationOptions, rows: int = ROWS
    ) -> Generation | list[Generation]:
        """A Generation, or for a list of prompts a list of them; ``rows`` prompts run together.

        Raises: InputError listing every prompt that does not fit.
        """
        watch = self.started()
        prompts, policy = self._prepared(prompt, options)
        if prompts.single:
            stream = self._stream(prompts.ids[0], policy, watch)
            for _ in stream:
                pass
            return stream.result
        made: dict[int, Generation] = {}
        for numbers in self._batches(prompts.ids, policy, rows):
            made |= self._batch({number: prompts.ids[number] for number in numbers}, policy)
        return [made[number] for number in range(len(prompts.ids))]

    def stream(self, prompt: object, options: GenerationOptions) -> Stream:
        """The text of one prompt, in pieces as it is written.

        Raises: InputError if the prompt does not fit, ToolError if the executable has no tokenizer.
        """
        self.needs_tokenizer("text")
        watch = self.started()
        prompts, policy = self._prepared(prompt, options)
        if not prompts.single:
            raise InputError("prompt", "is a list of prompts", "stream them one by one, or use `generate`")
        return self._stream(prompts.ids[0], policy, watch)

    def logits(self, prompt: object) -> Array:
        """float32[tokens, vocabulary]: the logits after every token of one prompt. Raises: InputError."""
        prompts = Prompts.of(prompt, self.tokenizer)
        if not prompts.single:
            raise InputError("prompt", "is a list of prompts", "give them one by one")
        if self.decoding.encoder is not None:
            raise InputError("prompt", "has two parts in an encoder-decoder model", "use `run`")
        prompts.check(self.decoding, room=0)
        ids = prompts.ids[0]
        decoder = self.borrow(len(ids))
        try:
            parts = []
            for at in range(0, len(ids), CHUNK):
                parts.append(decoder.extend(ids[at : at + CHUNK])[0].copy())
                decoder.lengths += len(parts[-1])
        finally:
            self.give_back(decoder)
        return np.concatenate(parts).astype(np.float32, copy=False)

    def needs_tokenizer(self, what: str) -> Tokenizer:
        """The tokenizer. Raises: ToolError saying that ``what`` needs one."""
        if self.tokenizer is None:
            fix = "give tokens to `generate`, or compile the model from a folder that has tokenizer.json"
            raise ToolError(what, "needs a tokenizer, and the executable was compiled without one", fix)
        return self.tokenizer

    def borrow(self, tokens: int) -> TokenDecoder:
        """A decoder of one empty row with room for ``tokens``; nobody else has it."""
        with self._lock:
            decoder, self._spare = self._spare, None
        if decoder is None:
            return self.decoder(tokens)
        decoder.lengths[:] = 0
        decoder.reserve(tokens)
        return decoder

    def give_back(self, decoder: TokenDecoder) -> None:
        """Let the next caller have its buffers."""
        with self._lock:
            self._spare = decoder

    def decoder(self, tokens: int, rows: int = 1, given: Arrays | None = None) -> TokenDecoder:
        """A new decoder of empty rows with room for ``tokens`` each; ``given``: its constant inputs."""
        runner = self.runner
        if isinstance(runner, OnDevice) and runner.device != "cpu":
            return DeviceDecoder(self._buckets, rows=rows, capacity=tokens, constants=given)
        return Decoder(
            runner, self.decoding, rows=rows, capacity=tokens, in_place=self._in_place, constants=given
        )

    def begin(
        self, prompts: Sequence[Sequence[int]], new: int, held: TokenDecoder | None = None
    ) -> TokenDecoder:
        """A decoder with ``prompts`` filled in and room for ``new`` tokens; ``held``: one to use again."""
        starts = [self._start(ids) for ids in prompts]
        room = max(map(len, starts)) + new
        if self.decoding.encoder is not None:
            decoder = self.decoder(room, len(prompts), self._encoded(prompts))
        else:
            decoder = held or self.decoder(room, len(prompts))
        decoder.lengths[:] = 0
        if fits_together([len(ids) for ids in starts], CHUNK):
            decoder.prefill_together(starts)
            return decoder
        for row, ids in enumerate(starts):
            decoder.prefill(row, ids)
        return decoder

    def row(self, ids: Sequence[int], policy: Policy, **facts: int) -> Row:
        """A row that starts from ``ids``; ``facts`` as Row takes them."""
        room = policy.max_tokens if self.decoding.context is None else self.decoding.context - len(ids)
        return Row(
            ids,
            policy,
            vocabulary=self.decoding.vocabulary,
            limit=min(policy.max_tokens, room),
            detokenizer=None if self.tokenizer is None else self.tokenizer.detokenizer(),
            **facts,
        )

    def room(self, ids: Sequence[int], policy: Policy) -> int:
        """Tokens that buffers should have room for at first."""
        wanted = len(ids) + min(policy.max_tokens, _AHEAD)
        return wanted if self.decoding.context is None else min(wanted, self.decoding.context)

    def started(self) -> Stopwatch:
        """A clock that starts when everything is open: loading is no part of TTFT."""
        self.runner  # noqa: B018 - opens the session
        self.defaults  # noqa: B018 - reads the tokenizer
        return Stopwatch()

    def _prepared(self, prompt: object, options: GenerationOptions) -> tuple[Prompts, Policy]:
        policy = options.resolved(self.defaults)
        if policy.stops:
            self.needs_tokenizer("stop")
        prompts = Prompts.of(prompt, self.tokenizer)
        prompts.check(self.decoding)
        return prompts, policy

    def _stream(self, ids: Sequence[int], policy: Policy, watch: Stopwatch) -> Stream:
        start = self._start(ids)
        row, room = self.row(start, policy, prompt_tokens=len(ids)), self.room(start, policy)
        watch.prompt_tokens = len(ids)
        if self.decoding.encoder is None:
            return Stream(row, policy, watch, lambda: self.borrow(room), self.give_back)
        return Stream(row, policy, watch, lambda: self.decoder(room, 1, self._encoded([ids])), lambda _: None)

    def _start(self, ids: Sequence[int]) -> Sequence[int]:
        """What the decoder begins with: the prompt itself, or an encoder-decoder's start token."""
        start = self.decoding.start
        return ids if self.decoding.encoder is None or start is None else (start,)

    def _encoded(self, sources: Sequence[Sequence[int]]) -> Arrays:
        assert self.decoding.encoder is not None
        wanted = constants(self.decoding, self.runner.inputs)
        return encoded(self._open(self.decoding.encoder), self.decoding, sources, wanted)

    def _batches(
        self, prompts: Sequence[Sequence[int]], policy: Policy, rows: int
    ) -> Iterator[Sequence[int]]:
        """Numbers of the prompts that run together: neighbours in length."""
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        tokens = next(spec for spec in self.runner.inputs if spec.name == self.decoding.tokens)
        encoder = None if self.decoding.encoder is None else self._open(self.decoding.encoder)
        alone = encoder is not None and not can_pad(encoder, self.decoding)
        if policy.speculate or alone or (tokens.shape and isinstance(tokens.shape[0], int)):
            rows = 1
        for at in range(0, len(order), rows):
            yield order[at : at + rows]

    def _batch(self, prompts: dict[int, Sequence[int]], policy: Policy) -> dict[int, Generation]:
        """The Generation of each prompt by its number."""
        starts = {number: self._start(ids) for number, ids in prompts.items()}
        rows = [
            self.row(ids, policy, number=number, prompt_tokens=len(prompts[number]))
            for number, ids in starts.items()
        ]
        watch = Stopwatch(rows=len(rows), prompt_tokens=sum(map(len, prompts.values())))
        given = None if self.decoding.encoder is None else self._encoded(list(prompts.values()))
        room = max(self.room(ids, policy) for ids in starts.values())
        for _ in write(self.decoder(room, len(rows), given), rows, policy, watch):
            pass
        return {row.number: result_of(row, policy, watch) for row in rows}
