"""How far a language model's logits are from its source's on a text: KL, top-1, perplexity, by window."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Logits = Callable[[Array], Array]
"""Token ids, int64[tokens], to float32[tokens, vocabulary]."""


@dataclass(frozen=True, slots=True)
class Window:
    """Sums over the tokens of a window that have a next one: negative log-likelihoods in nats."""

    tokens: int
    surprise: float
    source_surprise: float
    divergence: float
    same_top: int


@dataclass(frozen=True, slots=True)
class Score:
    """Means over all windows; ``change``: of the perplexity, as a share of the source's."""

    tokens: int
    perplexity: float
    source: float
    kl: float
    top1: float

    @property
    def change(self) -> float:
        return self.perplexity / self.source - 1

    @classmethod
    def of(cls, windows: Sequence[Window]) -> Score:
        tokens = sum(w.tokens for w in windows)
        return cls(
            tokens,
            float(np.exp(sum(w.surprise for w in windows) / tokens)),
            float(np.exp(sum(w.source_surprise for w in windows) / tokens)),
            sum(w.divergence for w in windows) / tokens,
            sum(w.same_top for w in windows) / tokens,
        )


def compared(logits: Array, source: Array, ids: Array) -> Window:
    """One window; logits, source: float32[tokens, vocabulary] after each of ``ids``."""
    import torch

    own, true = (torch.log_softmax(torch.from_numpy(x[:-1]), -1) for x in (logits, source))
    wanted = torch.from_numpy(np.ascontiguousarray(ids[1:, None]))
    return Window(
        len(ids) - 1,
        -float(own.gather(1, wanted).double().sum()),
        -float(true.gather(1, wanted).double().sum()),
        float((true.exp() * (true - own)).double().sum()),
        int((own.argmax(-1) == true.argmax(-1)).sum()),
    )


@dataclass(frozen=True, slots=True)
class Source:
    """The source's logits of each window: its last hidden states times the output layer.

    hidden: float32[windows, tokens, columns]; head: float32[vocabulary, columns].
    """

    ids: Array
    hidden: Array
    head: Array

    def logits(self, window: int) -> Array:
        product: Array = self.hidden[window] @ self.head.T
        return product


class Scores:
    """Windows that were compared, by candidate, in a file: a later run goes on where one ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def windows(self, name: str, chosen: Sequence[int]) -> list[Window]:
        """Those of ``chosen`` that are known."""
        known = self.found.get(name, {}).get("windows", {})
        return [Window(**known[str(w)]) for w in chosen if str(w) in known]

    def facts(self, name: str) -> dict[str, Any]:
        """What else was kept of a candidate."""
        return dict(self.found.get(name, {}).get("facts", {}))

    def missing(self, name: str, chosen: Sequence[int]) -> list[int]:
        known = self.found.get(name, {}).get("windows", {})
        return [w for w in chosen if str(w) not in known]

    def keep(self, name: str, facts: Mapping[str, Any]) -> None:
        self.found.setdefault(name, {})["facts"] = dict(facts)
        self._write()

    def measure(self, name: str, logits: Logits, source: Source, chosen: Sequence[int]) -> None:
        """Compare every window of ``chosen`` that is not known yet."""
        entry = self.found.setdefault(name, {}).setdefault("windows", {})
        for window in self.missing(name, chosen):
            ids = source.ids[window]
            entry[str(window)] = asdict(compared(logits(ids), source.logits(window), ids))
            self._write()

    def _write(self) -> None:
        self.path.write_text(json.dumps(self.found) + "\n", encoding="utf-8")
