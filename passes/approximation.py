"""What a pass makes of one weight, as numbers: the budget's search compares it before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import onnx_ir as ir

from ..compiler.ir.constants import constant_tensor
from ..compiler.reference import Array
from .base import PassContext, PassT, decline
from .weight_uses import WeightUses, weight_uses


@dataclass(frozen=True, slots=True)
class Approximation:
    """A weight as products will in effect multiply with it, and what it costs.

    ``array``: float32, of the weight's own shape and orientation. ``nbytes``: stored, look-ups included.
    ``read``: bytes that one product reads of it, as each token of a language model does. ``kept``: share of
    its elements that steps behind still store and read, of the ``array`` that they are given whole.
    ``elsewhere``: bytes by which other weights grow (shrink: negative), which make what this one reads.
    """

    array: Array
    nbytes: int
    read: int
    kept: float = 1.0
    elsewhere: int = 0


@runtime_checkable
class Approximates(Protocol):
    """A pass that replaces weights by smaller ones which give nearly the same; its fields are its options."""

    name: ClassVar[str]

    def approximation(
        self, name: str, tensor: ir.TensorProtocol, uses: WeightUses, context: PassContext
    ) -> Approximation | None:
        """What the pass, with its options, would make of the weight ``name``; None if it leaves it alone.

        ``tensor`` may be what an earlier pass's approximation gave. Nothing of the program is changed, and
        ``context.plan`` is not asked: the plan is what is being chosen.
        """
        ...


def chosen_weight(
    step: PassT, value: ir.Value, context: PassContext, least: int
) -> tuple[WeightUses, ir.TensorProtocol, PassT]:
    """How ``value``, an initializer, is read, its contents, and ``step`` with the plan's options for it.

    Raises: NoMatch if it is no weight of ``least`` elements, is read in other ways, or is to be left alone.
    """
    uses, tensor = weight_uses(value, least), constant_tensor(value)
    assert tensor is not None
    chosen = context.chosen(step, str(value.name))
    if chosen is None:
        decline("the budget keeps it")
    return uses, tensor, chosen
