"""Packing weights for the native kernels: integer blocks and floats, padded to whole tiles."""

from __future__ import annotations

import onnx_ir as ir

from .packed import TILE, PackedWeight

__all__ = ["TILE", "PackedWeight", "pack_weight"]


def pack_weight(value: ir.Value, up: ir.Value | None = None) -> PackedWeight:
    """The weight[rows, columns] that the constant ``value`` is, as the kernels read it.

    ``up``: the second weight of a gated layer, interleaved with the first by tile. Integer codes stay integer
    codes, whatever scales them; all else is packed as floats of the width they have.
    """
    from .blocked import pack_integers
    from .floats import pack_floats

    return pack_integers(value, up) or pack_floats(value, up)
