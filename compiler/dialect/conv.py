"""Convolution with residual and activation: com.microsoft FusedConv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..reference import Array
from .activation import ACTIVATION, activate
from .base import OpSchema, StaticShapes, integer, integers, numbers, parameters, text
from .standard import infer_like

_GEOMETRY = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def fused_conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    z: Array | None = None,
    *,
    activation: str | None,
    activation_params: Sequence[float] | None,
    auto_pad: str,
    dilations: Sequence[int] | None,
    group: int,
    kernel_shape: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
) -> tuple[Array]:
    """``activation(conv(x, w) + b + z)``; x: [n, c, *spatial], w: [m, c/group, *kernel], z as the result."""
    rank = x.ndim - 2
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    extents = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *_padding(x.shape[2:], extents, strides, pads, auto_pad)])
    y = _convolve(x.astype(np.float64), w.astype(np.float64), extents, strides, dilations, group)
    if b is not None:
        y += b.reshape(-1, *[1] * rank)
    if z is not None:
        y += z
    return (activate(y, activation, activation_params or ()).astype(w.dtype),)


def _padding(
    sizes: Sequence[int],
    extents: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    rank = len(sizes)
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        pads = pads if pads and auto_pad != "VALID" else [0] * (2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    found = []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + extent - size)
        less, more = total // 2, total - total // 2
        found.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return found


def _convolve(
    x: Array, w: Array, extents: Sequence[int], strides: Sequence[int], dilations: Sequence[int], group: int
) -> Array:
    rank = x.ndim - 2
    windows = sliding_window_view(x, tuple(extents), axis=tuple(range(2, 2 + rank)))
    places = [slice(None, None, s) for s in strides]
    taps = [slice(None, None, d) for d in dilations]
    windows = windows[(slice(None), slice(None), *places, *taps)]
    inputs, outputs = x.shape[1] // group, w.shape[0] // group
    contracted = [1, *range(2 + rank, 2 + 2 * rank)]
    parts = [
        np.tensordot(
            windows[:, g * inputs : (g + 1) * inputs],
            w[g * outputs : (g + 1) * outputs],
            (contracted, list(range(1, 2 + rank))),
        )
        for g in range(group)
    ]
    return np.moveaxis(np.concatenate(parts, -1), -1, 1)


def conv_flops(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    """Two per multiply-add: every output element takes channels/group * kernel of them."""
    return 2.0 * math.prod(outputs[0] or ()) * math.prod((inputs[1] or (1, 1))[1:])


SCHEMAS = (
    OpSchema(
        "FusedConv",
        parameters("X:T W:T B?:T Z?:T"),
        parameters("Y:T"),
        infer_like("Conv", *_GEOMETRY),
        fused_conv,
        {
            "activation": ACTIVATION,
            "activation_params": numbers(),
            "auto_pad": text("NOTSET"),
            "dilations": integers(),
            "group": integer(1),
            "kernel_shape": integers(),
            "pads": integers(),
            "strides": integers(),
        },
        conv_flops,
    ),
)
