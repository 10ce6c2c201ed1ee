"""Sparsity: weights with zeros where a kernel skips them, heads and channels removed."""

from __future__ import annotations

from ..base import Pass
from .channels import PruneChannels
from .heads import PruneHeads
from .prune import PruneWeights

SPARSITY: tuple[Pass, ...] = (PruneHeads(), PruneChannels(), PruneWeights())
"""In order: structured removal first, since it makes the weights that are pruned smaller."""

__all__ = ["SPARSITY", "PruneChannels", "PruneHeads", "PruneWeights"]
