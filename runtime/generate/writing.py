"""The loop that writes text: prompts are filled in, then every row gets a token a step until it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from ...compiler.reference import Array
from .options import Policy
from .protocol import TokenDecoder
from .row import Row
from .timings import Stopwatch


def write(decoder: TokenDecoder, rows: Sequence[Row], policy: Policy, watch: Stopwatch) -> Iterator[Row]:
    """Write all ``rows`` to their ends; yields a row whenever it has got tokens.

    ``decoder`` has as many rows, whose ``lengths`` say what is cached of each. It is left with what the rows
    that were the last to end have written. No step costs more Python than the one before it.
    """
    decoder.alive[:] = 1
    began = time.perf_counter()
    together = fits_together([len(row.ids) for row in rows], policy.prefill_chunk)
    if together:
        decoder.prefill_together([row.ids for row in rows])
    for place, row in enumerate(rows):
        if not together:
            decoder.prefill(place, row.ids[row.cached :], policy.prefill_chunk)
        decoder.tokens[place, 0] = row.take(_scores(decoder, row, place), int(decoder.tokens[place, 0]))
        watch.prefilled(began)
        watch.new_tokens += 1
        yield from _handed(row, watch)
        began = time.perf_counter()
    live = _living(decoder, list(rows))
    while live:
        if len(live) == 1 and decoder.rows == 1 and live[0].lookup is not None:
            tokens = _speculate(decoder, live[0], watch)
        else:
            decoder.step()
            tokens = len(live)
            if tokens == 1 == decoder.rows:
                decoder.tokens[0, 0] = live[0].take(_scores(decoder, live[0], 0), int(decoder.tokens[0, 0]))
            else:
                _take_all(decoder, live)
        watch.new_tokens += tokens
        watch.stepped(tokens if len(live) == 1 else 1)
        for row in live:
            yield from _handed(row, watch)
        if any(row.finish is not None for row in live):
            live = _living(decoder, live)


_UNREAD: Array = np.zeros(0, np.float32)


def _scores(decoder: TokenDecoder, row: Row, place: int) -> Array:
    """The logits of ``row``; none where it does not read them, since on a device to look is to copy."""
    return decoder.logits[place] if row.reads_logits else _UNREAD


def fits_together(lengths: Sequence[int], chunk: int) -> bool:
    """Whether prompts of these lengths are better taken in by one run: several, short, alike in length."""
    padded = len(lengths) * max(lengths)
    return len(lengths) > 1 and padded <= min(chunk, 2 * sum(lengths))


def _handed(row: Row, watch: Stopwatch) -> Iterator[Row]:
    """``row``, and the time its reader takes is not counted."""
    before = time.perf_counter()
    yield row
    watch.last += time.perf_counter() - before


def _take_all(decoder: TokenDecoder, live: Sequence[Row]) -> None:
    """The next token of every living row; row i of ``live`` is the i-th living row of ``decoder``."""
    places = decoder.alive.nonzero()[0].tolist()
    likeliest = decoder.tokens[:, 0].tolist()
    for place, row in zip(places, live, strict=True):
        decoder.tokens[place, 0] = row.take(_scores(decoder, row, place), likeliest[place])


def _living(decoder: TokenDecoder, rows: Sequence[Row]) -> list[Row]:
    """Those of ``rows``, the living rows of ``decoder``, that go on; the others no longer advance.

    Once half of the decoder's rows wait, they are dropped from it: one copy, for steps half as wide.
    """
    places = decoder.alive.nonzero()[0].tolist()
    going = [place for place, row in zip(places, rows, strict=True) if row.finish is None]
    decoder.alive[:] = 0
    decoder.alive[going] = 1
    if going and 2 * len(going) <= decoder.rows:
        decoder.keep(going)
    return [row for row in rows if row.finish is None]


def _speculate(decoder: TokenDecoder, row: Row, watch: Stopwatch) -> int:
    """One step of the only row that checks a draft, if there is one; tokens written."""
    assert row.lookup is not None
    draft = row.lookup.draft()[: row.limit - len(row.tokens) - 1]
    if not draft:
        decoder.step()
        decoder.tokens[0, 0] = row.take(_scores(decoder, row, 0), int(decoder.tokens[0, 0]))
        return 1
    held = int(decoder.lengths[0])
    logits, likeliest = decoder.extend([row.tokens[-1], *draft])
    written = 0
    for guess, scores, best in zip([*draft, None], logits, likeliest.tolist(), strict=True):
        token = row.take(scores, best)
        written += 1
        if row.finish is not None or token != guess:
            break
    accepted = written - 1
    row.lookup.learn(len(draft), accepted)
    watch.drafted += len(draft)
    watch.accepted += accepted
    decoder.lengths[0] = held + written  # the last token written is not in the state yet
    decoder.tokens[0, 0] = row.tokens[-1]
    return written
