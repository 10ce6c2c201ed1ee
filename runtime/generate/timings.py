"""Timings of one generation, in the field's terms: TTFT, prefill and decode rates, time per output token."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds and tokens of one call; a batch is timed as a whole.

    ``prompt_tokens``: of all rows, ``cached_tokens`` of them held from before and not run again. ``ttft``:
    from the call to the first token; of a batch, to the first row's. ``prefill``: running the prompts.
    ``decode``: everything after. ``tpot_p50``, ``tpot_p99``: time per output token of a row after its first;
    None with fewer than two. ``drafted``, ``accepted``: tokens guessed by speculation, how many were right.
    """

    rows: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    ttft: float
    prefill: float
    decode: float
    tpot_p50: float | None
    tpot_p99: float | None
    drafted: int = 0
    accepted: int = 0

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens that were run per second."""
        run = self.prompt_tokens - self.cached_tokens
        return run / self.prefill if self.prefill > 0 and run else None

    @property
    def decode_rate(self) -> float | None:
        """New tokens per second, of all rows, after the first of each."""
        return (self.new_tokens - self.rows) / self.decode if self.decode > 0 else None

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that were right."""
        return self.accepted / self.drafted if self.drafted else None

    def __str__(self) -> str:
        parts = [f"{self.prompt_tokens} + {self.new_tokens} tokens", f"TTFT {_milli(self.ttft)}"]
        if self.cached_tokens:
            parts.append(f"{self.cached_tokens} cached")
        if self.prefill_rate is not None:
            parts.append(f"prefill {self.prefill_rate:.1f} tok/s")
        if self.decode_rate:
            parts.append(f"decode {self.decode_rate:.1f} tok/s")
        if self.tpot_p50 is not None and self.tpot_p99 is not None:
            parts.append(f"TPOT p50 {_milli(self.tpot_p50)}, p99 {_milli(self.tpot_p99)}")
        if self.acceptance is not None:
            parts.append(f"{self.accepted} of {self.drafted} drafted tokens accepted")
        return "; ".join(parts)


def _milli(seconds: float) -> str:
    return f"{seconds * 1e3:.{2 if seconds < 0.1 else 0}f} ms"


@dataclass(slots=True)
class Stopwatch:
    """Collects what Timings are made of while a generation runs."""

    rows: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    start: float = field(default_factory=time.perf_counter)
    prefill: float = 0.0
    first: float | None = None
    last: float = 0.0
    waits: list[float] = field(default_factory=list)

    def prefilled(self, began: float) -> None:
        """A prompt's run that ``began`` then is over, and its first token is there."""
        now = time.perf_counter()
        self.prefill += now - began
        self.first = now if self.first is None else self.first
        self.last = now

    def stepped(self, tokens: int = 1) -> None:
        """A step is over that gave every row ``tokens`` tokens."""
        now = time.perf_counter()
        self.waits += [(now - self.last) / tokens] * tokens
        self.last = now

    def timings(self) -> Timings:
        """The timings so far."""
        p50, p99 = np.quantile(self.waits, [0.5, 0.99]) if self.waits else (None, None)
        return Timings(
            rows=self.rows,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            new_tokens=self.new_tokens,
            ttft=(self.last if self.first is None else self.first) - self.start,
            prefill=self.prefill,
            decode=sum(self.waits),
            tpot_p50=None if p50 is None else float(p50),
            tpot_p99=None if p99 is None else float(p99),
            drafted=self.drafted,
            accepted=self.accepted,
        )
