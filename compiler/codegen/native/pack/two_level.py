"""Scales of K-quants taken apart again: a float16 for 256 columns times a small integer for each group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....reference import Array

_FACTORS = (63, -128, 127, *range(62, 0, -1), *range(126, 63, -1), *range(-127, 0))


@dataclass(frozen=True, slots=True)
class TwoLevel:
    """``first``: float16[rows, superblocks]; ``second``: int8[rows, superblocks, groups]."""

    first: Array
    second: Array


def two_level(values: Array) -> TwoLevel | None:
    """The parts whose products are exactly ``values`` (float32[rows, superblocks, groups]); None if none are.

    The largest value of a superblock is tried as k times a float16, from the k on that quantizers use.
    Source: ggml-quants.c of llama.cpp.

    >>> found = two_level(np.float32([[[0.5, 31.5, 0]]]))
    >>> found.first, found.second
    (array([[0.5]], dtype=float16), array([[[ 1, 63,  0]]], dtype=int8))
    """
    flat = values.reshape(-1, values.shape[2])
    first, second = np.zeros(len(flat), np.float16), np.zeros(flat.shape, np.int8)
    peak = np.take_along_axis(flat, np.abs(flat).argmax(1)[:, None], 1)[:, 0]
    left = np.flatnonzero(peak)
    for k in _FACTORS:
        if not len(left):
            break
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            half = (peak[left] / np.float32(k)).astype(np.float16)
            wide = half.astype(np.float32)
            tried = np.flatnonzero(wide * np.float32(k) == peak[left])
            whole = np.rint(flat[left[tried]] / wide[tried, None])
            fits = ((whole * wide[tried, None] == flat[left[tried]]) & (np.abs(whole + 0.5) < 128)).all(1)
        done = tried[fits]
        first[left[done]], second[left[done]] = half[done], whole[fits]
        left = np.delete(left, done)
    if len(left):
        return None
    return TwoLevel(first.reshape(values.shape[:2]), second.reshape(values.shape))
