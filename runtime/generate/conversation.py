"""Conversation: messages back and forth; what of them is already in the state is not run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...compiler.errors import InputError, OptionError
from .generator import Generator
from .options import GenerationOptions
from .prompts import Prompts
from .protocol import TokenDecoder
from .result import Generation
from .stream import Stream


class Conversation:
    """Messages with a model, ``{"role": "user", "content": "…"}``, in ``messages``, which may be edited.

    Each answer runs only the tokens that differ from what the state holds of the answers before.

    >>> chat = executable.chat(system="Answer briefly.")  # doctest: +SKIP
    >>> chat.ask("What is the capital of France?").text  # doctest: +SKIP
    'Paris.'
    """

    def __init__(
        self, generator: Generator, messages: Sequence[Mapping[str, Any]] = (), **options: Any
    ) -> None:
        if generator.decoding.encoder is not None:
            raise OptionError("chat", "needs a decoder-only model, this one has an encoder", "use `generate`")
        generator.needs_tokenizer("chat")
        self.messages = [dict(message) for message in messages]
        self._system = [message for message in self.messages if message.get("role") == "system"]
        self._generator, self._given = generator, options
        GenerationOptions.of(options)
        self._decoder: TokenDecoder | None = None
        self._held: list[int] = []
        self._answering = False

    def ask(self, text: str, **options: Any) -> Generation:
        """The answer to ``text``. ``options`` override those of the conversation, for this answer.

        Raises: InputError if the conversation no longer fits the context.
        """
        stream = self.stream(text, **options)
        for _ in stream:
            pass
        return stream.result

    def stream(self, text: str, **options: Any) -> Stream:
        """The answer in pieces; if it is not read to its end, the conversation holds what was written.

        Raises: InputError if the conversation no longer fits the context.
        """
        if self._answering:
            raise InputError("conversation", "is still answering", "read the stream to its end, or close it")
        generator = self._generator
        watch = generator.started()
        given = GenerationOptions.of({**self._given, **options})
        policy = given.resolved(generator.defaults)
        asked = [*self.messages, {"role": "user", "content": text}]
        prompts = Prompts.of(asked, generator.tokenizer)
        try:
            prompts.check(generator.decoding)
        except InputError as error:
            facts = "; ".join(problem.fact for problem in error.problems)
            raise InputError("conversation", facts, "reset it, or ask something shorter") from None
        ids = list(prompts.ids[0])
        cached = min(_common(self._held, ids), len(ids) - 1)
        row, room = generator.row(ids, policy, cached=cached), generator.room(ids, policy)
        watch.prompt_tokens, watch.cached_tokens = len(ids), cached

        def begin() -> TokenDecoder:
            self._answering = True
            self.messages.append({"role": "user", "content": text})
            decoder = self._decoder or generator.decoder(room)
            decoder.reserve(room)
            decoder.lengths[0] = cached
            self._decoder, self._held = decoder, self._held[:cached]
            return decoder

        def end(decoder: TokenDecoder) -> None:
            self._held = [*ids, *row.tokens][: int(decoder.lengths[0])]
            self.messages.append({"role": "assistant", "content": "".join(row.text)})
            self._answering = False

        return Stream(row, policy, watch, begin, end)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._system)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.messages)


def _common(held: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(held, ids, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(held), len(ids)))
