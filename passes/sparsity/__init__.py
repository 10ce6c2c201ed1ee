"""Sparsity: weights with zeros where a kernel skips them, heads and channels removed, heads made narrower."""

from __future__ import annotations

from ..base import Pass
from .channels import PruneChannels
from .heads import PruneHeads
from .narrow import NarrowHeads
from .prune import PruneWeights

SPARSITY: tuple[Pass, ...] = (PruneHeads(), NarrowHeads(), PruneChannels(), PruneWeights())
"""In order: structured removal first, since it makes the weights that are pruned smaller."""

__all__ = ["SPARSITY", "NarrowHeads", "PruneChannels", "PruneHeads", "PruneWeights"]
