"""Cleanup: what every program goes through before and after every other room. Order is data."""

from __future__ import annotations

from ..base import Pass
from .dedup_initializers import DedupInitializers
from .eliminate_common import EliminateCommon
from .fold_constants import FoldConstants
from .fold_shapes import FoldShapes
from .merge_views import MergeViews
from .remove_dead import RemoveDead
from .remove_noops import RemoveNoops
from .sink_transposes import SinkTransposes

CLEANUP: tuple[Pass, ...] = (
    RemoveDead(),
    RemoveNoops(),
    FoldShapes(),
    FoldConstants(),
    MergeViews(),
    SinkTransposes(),
    DedupInitializers(),
    EliminateCommon(),
    RemoveDead(),
)
"""In order; running it twice changes nothing the second time on most programs."""

__all__ = [
    "CLEANUP",
    "DedupInitializers",
    "EliminateCommon",
    "FoldConstants",
    "FoldShapes",
    "MergeViews",
    "RemoveDead",
    "RemoveNoops",
    "SinkTransposes",
]
