"""What the weights of a group may become: options of the approximating passes, in all combinations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from ..passes.approximation import Approximates
from ..passes.base import OFF, Pass
from ..passes.lowering.native import NativeWeights
from ..passes.lowering.onnxruntime import StoreHalves

INTEGERS = "quantize-activations"
"""The pass whose products round their activations too; what it takes, quantize-weights finds no more."""

_BYTES = "bits=8,output=8,table=8,block="

HALVES = "bits=16,output=16,table=16"
"""What quantize-weights rounds to float16."""

STORED = f"{_BYTES}32"
"""What quantize-weights makes of a weight in 8 bits."""

BLOCKS = (32, 64, 128)
"""Columns that share a scale in 4 bits."""

EIGHTS = (16, 32, 64, 128)
"""The same in 8 bits, where a mix is made: 10 bits a weight with its scale, 9, 8.5 or 8.25. Without finer
blocks than 32 a mix of 9 bits a weight has nothing to spend on weights that matter most but 16 bits."""


@dataclass(frozen=True, slots=True)
class Format:
    """A way to keep weights. ``label``: for tables. ``options``: of each approximating pass, by its name."""

    label: str
    options: tuple[tuple[str, str], ...]

    @property
    def tables(self) -> bool:
        """Whether it also rounds tables to 4 bits, which weights that nobody looks up have none of."""
        return any("table=4" in text for _, text in self.options)

    @property
    def splits_tables(self) -> bool:
        """Whether products read other bits than look-ups."""
        return any("bits=4" in text and "table=8" in text for _, text in self.options)

    @property
    def rounds_activations(self) -> bool:
        """Whether products round what they read to 8 bits row by row."""
        return any(name == INTEGERS and text != OFF for name, text in self.options)

    @property
    def planned(self) -> tuple[tuple[str, str], ...]:
        """``options`` as a plan has them: weights that ``INTEGERS`` leaves, or loses when it is reverted for
        its time, are still stored in 8 bits.
        """
        if not self.rounds_activations:
            return self.options
        return tuple((name, STORED if name == "quantize-weights" else text) for name, text in self.options)

    @property
    def kernel(self) -> str:
        """The first word of the label: ``int4``, ``fp32``, or how it is pruned."""
        return self.label.split()[0]


def approximating(passes: Sequence[Pass]) -> list[Pass]:
    """The passes that replace weights, in their order."""
    return [step for step in passes if isinstance(step, Approximates)]


def stores_halves(passes: Sequence[Pass]) -> bool:
    """Whether a pass of the pipeline stores in 16 bits what was rounded to float16."""
    stored = (StoreHalves, NativeWeights)
    return any(isinstance(step, stored) and getattr(step, "dtype", "auto") != "fp32" for step in passes)


def formats_of(passes: Sequence[Pass], precision: str, halves: bool = False) -> list[Format]:
    """Every combination of what the approximating passes offer: none of them first, the finest.

    Passes but quantize-weights are on, as they were set, or off. ``halves``: see ``stores_halves``.
    """
    offers = [_offers(step, precision, halves) for step in approximating(passes)]
    found = []
    for chosen in product(*offers):
        labels = [label for label, _, text in chosen if text != OFF]
        on = {name for _, name, text in chosen if text != OFF}
        if {INTEGERS, "quantize-weights"} <= on:
            continue
        options = tuple((name, text) for _, name, text in chosen)
        found.append(Format(" + ".join(labels) or "fp32", options))
    return found


def _offers(step: Pass, precision: str, halves: bool) -> list[tuple[str, str, str]]:
    """Label, pass and options of each of its choices."""
    name = step.name
    if name == INTEGERS:
        return [("", name, OFF), ("int8 activations", name, "")]
    if name != "quantize-weights":
        return [("", name, OFF), (_label(step), name, "")]
    found = [("", name, OFF), *([("fp16", name, HALVES)] if halves else [])]
    if precision != "int4":
        return [*found, ("int8 g32", name, STORED)]
    found += [(f"int8 g{block}", name, f"{_BYTES}{block}") for block in EIGHTS]
    for block in BLOCKS:
        found.append((f"int4 g{block}", name, f"bits=4,output=4,table=8,block={block}"))
        found.append((f"int4 g{block} table", name, f"bits=4,output=4,table=4,block={block}"))
    return found


def _label(step: Pass) -> str:
    """Its name and what says how much it takes away: ``prune-weights block 0.8``."""
    known = [getattr(step, key) for key in ("pattern", "sparsity", "share", "rank") if hasattr(step, key)]
    return " ".join(
        [step.name, *(f"{value:g}" if isinstance(value, float) else str(value) for value in known)]
    )
