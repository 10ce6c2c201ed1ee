"""Strided views: what reshapes, transposes and slices of one memory are, without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .emit.base import Size, View, divided, factors, row_major, times


def contiguous(pointer: str, ctype: str, shape: Sequence[Size]) -> View:
    """A row-major view."""
    return View(pointer, ctype, tuple(shape), row_major(shape))


def moved(view: View, offset: Size) -> View:
    """``view`` beginning ``offset`` elements later."""
    return view if offset == 0 else replace(view, pointer=f"({view.pointer} + {offset})")


def transposed(view: View, order: Sequence[int]) -> View:
    """Axes in another order."""
    return replace(
        view,
        shape=tuple(view.shape[axis] for axis in order),
        strides=tuple(view.strides[axis] for axis in order),
    )


def cut(view: View, axis: int, begin: Size, size: Size, step: int = 1) -> View:
    """``size`` elements of an axis from ``begin`` on, every ``step``-th."""
    stride = view.strides[axis]
    shape, strides = list(view.shape), list(view.strides)
    shape[axis], strides[axis] = size, times(step, stride) if step >= 0 else f"({step} * {stride})"
    return moved(replace(view, shape=tuple(shape), strides=tuple(strides)), times(begin, stride))


def expanded(view: View, shape: Sequence[Size]) -> View:
    """Broadcast to ``shape``: axes in front, and axes of one element repeated."""
    extra = len(shape) - len(view.shape)
    strides: list[Size] = [0] * extra
    for old, new, stride in zip(view.shape, shape[extra:], view.strides, strict=True):
        strides.append(0 if old == 1 and new != 1 else stride)
    return replace(view, shape=tuple(shape), strides=tuple(strides))


def reshaped(view: View, shape: Sequence[Size]) -> View | None:
    """The same elements in order as another shape; None if that takes a copy.

    >>> heads = reshaped(View("x", "float", ("t", 6), (12, 1)), ("t", 2, 3))
    >>> heads and heads.strides
    (12, 3, 1)
    """
    if view.is_contiguous:
        return contiguous(view.pointer, view.ctype, shape)
    old = [(s, t) for s, t in zip(view.shape, view.strides, strict=True) if s != 1]
    new = [s for s in shape if s != 1]
    strides: list[Size] = []
    while old or new:
        if not old or not new:
            return None
        (size, stride), group = old.pop(0), [new.pop(0)]
        while times(*group) != size:
            if new and (not old or _divides(times(*group), size)):
                group.append(new.pop(0))
            elif old:
                more, inner = old.pop(0)
                if stride != times(more, inner):
                    return None
                size, stride = times(size, more), inner
            else:
                return None
        inner_strides = [times(t, stride) for t in row_major(group)]
        strides += inner_strides
    rest = iter(strides)
    return View(view.pointer, view.ctype, tuple(shape), tuple(0 if s == 1 else next(rest) for s in shape))


def rows_of(view: View) -> tuple[Size, Size] | None:
    """A view [..., columns] as rows of contiguous elements: how many, and elements between them.

    None if no one distance leads from each row to the next.
    """
    if not view.shape or (view.strides[-1] != 1 and view.shape[-1] != 1):
        return None
    outer = View(view.pointer, view.ctype, view.shape[:-1], view.strides[:-1])
    count = times(*outer.shape)
    if count == 1:
        return 1, view.shape[-1]
    flat = reshaped(outer, (count,))
    return None if flat is None else (count, flat.strides[0])


def _divides(part: Size, whole: Size) -> bool:
    return factors(part) != factors(whole) and divided(whole, part) is not None
