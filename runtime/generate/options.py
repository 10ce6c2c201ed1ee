"""GenerationOptions: how text is continued; checked at once, filled up with the model's own defaults."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from ...compiler.errors import OptionError, Problem
from .defaults import Defaults

_T = TypeVar("_T")

MAX_TOKENS = 128
"""Tokens to write where neither the caller nor the model's generation_config.json says how many."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How text is continued; None means what the model's generation_config.json says, or none of it.

    ``max_tokens``: at most so many new tokens, 128 by default. ``min_tokens``: no end before so many.
    ``temperature``: 0, the default, takes the likeliest token each time; above 0 tokens are drawn, and
    ``top_k``, ``top_p`` and ``min_p`` cut the unlikely ones off, with the meaning and in the order of
    transformers. ``repetition_penalty``: divides the scores of tokens that occurred, also without sampling.
    ``seed``: makes draws repeatable; row i of a batch draws as ``seed`` and i say. ``stop``: texts that end
    the answer and are not part of it. ``ignore_eos``: write on behind the model's end token. ``logprobs``:
    give log-probabilities of so many likeliest tokens, before penalties and temperature. ``speculate``: draft
    so many tokens by looking up what followed the last words before, and check them in one run: the same
    text, sooner where it repeats itself or the prompt. ``prefill_chunk``: prompt tokens that one run takes.

    Raises: OptionError listing every value that is out of range.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] | str = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    speculate: int = 0
    prefill_chunk: int = 512

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise OptionError.of(problems)

    def _problems(self) -> Iterator[Problem]:
        bounds: dict[str, tuple[float, float]] = {
            "max_tokens": (1, 1 << 31), "min_tokens": (0, 1 << 31), "temperature": (0, 100),
            "top_k": (0, 1 << 31), "top_p": (0, 1), "min_p": (0, 1), "repetition_penalty": (1e-3, 1e3),
            "seed": (0, (1 << 64) - 1), "logprobs": (0, 100), "speculate": (0, 64),
            "prefill_chunk": (1, 1 << 20),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            whole = name not in ("temperature", "top_p", "min_p", "repetition_penalty")
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                yield Problem(name, f"is {value!r}", f"give a {'whole ' * whole}number")
            elif not low <= value <= high or (name == "top_p" and value == 0):
                above = "above 0 and at most 1" if name == "top_p" else f"from {low:g} to {high:g}"
                yield Problem(name, f"is {value}", f"give a number {above}")
        if not all(isinstance(text, str) and text for text in self.stops):
            yield Problem("stop", f"is {self.stop!r}", "give texts that are not empty")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> GenerationOptions:
        """Options from keyword arguments. Raises: OptionError for a name that is none of them."""
        names = [field.name for field in fields(cls)]
        problems = []
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                fix = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(names)}"
                problems.append(Problem(name, "does not exist", fix))
        if problems:
            raise OptionError.of(problems)
        return cls(**given)

    @property
    def stops(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def resolved(self, defaults: Defaults) -> Policy:
        """What to do, everything decided."""
        sampling = bool(self.temperature)
        said = defaults if sampling else Defaults()  # the authors' cuts are for sampling; penalties for both
        ngram, penalty = (
            defaults.no_repeat_ngram,
            _first(self.repetition_penalty, defaults.repetition_penalty),
        )
        return Policy(
            max_tokens=_first(self.max_tokens, defaults.max_tokens) or MAX_TOKENS,
            min_tokens=_first(self.min_tokens, defaults.min_tokens) or 0,
            temperature=self.temperature or 0.0,
            top_k=_first(self.top_k, said.top_k) or 0,
            top_p=_first(self.top_p, said.top_p) or 1.0,
            min_p=_first(self.min_p, said.min_p) or 0.0,
            repetition_penalty=penalty or 1.0,
            no_repeat_ngram=ngram or 0,
            seed=self.seed,
            stops=self.stops,
            eos=() if self.ignore_eos else defaults.eos,
            forced_bos=defaults.forced_bos,
            forced_eos=None if self.ignore_eos else defaults.forced_eos,
            suppress=(*defaults.suppress, *(defaults.eos if self.ignore_eos else ())),
            begin_suppress=defaults.begin_suppress,
            logprobs=self.logprobs,
            speculate=self.speculate,
            prefill_chunk=self.prefill_chunk,
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """Options with the model's defaults filled in; fields as in GenerationOptions and Defaults."""

    max_tokens: int = MAX_TOKENS
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    eos: tuple[int, ...] = ()
    forced_bos: int | None = None
    forced_eos: int | None = None
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()
    logprobs: int | None = None
    speculate: int = 0
    prefill_chunk: int = 512

    @property
    def takes_argmax(self) -> bool:
        """Whether the likeliest token of the bare logits is always the one to take."""
        return (
            not self.temperature
            and self.repetition_penalty == 1.0
            and not self.no_repeat_ngram
            and not (self.min_tokens and self.eos)
            and not self.suppress
            and not self.begin_suppress
            and self.forced_bos is None
            and self.forced_eos is None
        )


def _first(given: _T | None, default: _T | None) -> _T | None:
    return default if given is None else given
