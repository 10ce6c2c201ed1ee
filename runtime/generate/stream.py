"""Stream: the text of one prompt, in pieces as it is written; its result so far at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from .options import Policy
from .protocol import TokenDecoder
from .result import Generation
from .row import Row
from .timings import Stopwatch
from .writing import write


class Stream:
    """An iterator over pieces of text. Nothing runs before the first is asked for.

    ``result``: the Generation, whole after the last piece, before that what there is so far. Leaving early is
    fine: ``close``, a ``with`` block, or dropping the stream gives the buffers back.
    """

    def __init__(
        self,
        row: Row,
        policy: Policy,
        watch: Stopwatch,
        open_decoder: Callable[[], TokenDecoder],
        give_back: Callable[[TokenDecoder], None],
    ) -> None:
        self._row, self._policy, self._watch = row, policy, watch
        self._pieces = self._run(open_decoder, give_back)

    def _run(
        self, open_decoder: Callable[[], TokenDecoder], give_back: Callable[[TokenDecoder], None]
    ) -> Iterator[str]:
        decoder, row, shown = open_decoder(), self._row, 0
        try:
            for _ in write(decoder, [row], self._policy, self._watch):
                while shown < len(row.text):
                    shown += 1
                    yield row.text[shown - 1]
        finally:
            if row.finish is None:
                row.finish = "cancelled"
                row.close()
            give_back(decoder)

    @property
    def result(self) -> Generation:
        """What was written so far."""
        return result_of(self._row, self._policy, self._watch)

    def close(self) -> None:
        """End the text here."""
        self._pieces.close()  # type: ignore[attr-defined]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def result_of(row: Row, policy: Policy, watch: Stopwatch) -> Generation:
    """The Generation of ``row``."""
    return Generation(
        text="".join(row.text),
        ids=tuple(row.tokens),
        finish_reason=row.finish or "cancelled",
        timings=watch.timings(),
        prompt_tokens=row.prompt_tokens,
        stop=row.stop,
        logprobs=None if policy.logprobs is None else tuple(row.logprobs),
    )
