"""Fusion: fewer, larger operators of the standard vocabulary, for every backend."""

from __future__ import annotations

from ..base import Pipeline

FUSION: Pipeline = ()
