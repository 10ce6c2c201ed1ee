"""Attention of the native kernels, called from numpy: its C structs, and caches of every dtype."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from miaotui.compiler.codegen.isa import Isa
from miaotui.compiler.codegen.native.toolchain import find_toolchain

Array = npt.NDArray[Any]
HARNESS = Path(__file__).with_name("attention_harness.c")
ROTARY = ("", "half", "interleaved")
CACHES = ("", "float32", "float16", "int8")
"""In the order of C's enumerators."""


class Spec(ctypes.Structure):
    """attention_spec."""

    _fields_ = (
        ("heads", ctypes.c_int),
        ("kv_heads", ctypes.c_int),
        ("size", ctypes.c_int),
        ("value_size", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("epsilon", ctypes.c_float),
        ("window", ctypes.c_int),
        ("causal", ctypes.c_int),
        ("rotary", ctypes.c_int),
        ("pairs", ctypes.c_int),
        ("key_norm", ctypes.c_int),
        ("cache", ctypes.c_int),
    )


class Strides(ctypes.Structure):
    """strides."""

    _fields_ = (("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("token", ctypes.c_int64))


class Args(ctypes.Structure):
    """attention_args."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("keys", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("query_at", Strides),
        ("key_at", Strides),
        ("value_at", Strides),
        ("past_key", ctypes.c_void_p),
        ("past_value", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_at", Strides),
        ("bias_key", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("angle_batch", ctypes.c_int64),
        ("angle_token", ctypes.c_int64),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("y_at", Strides),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """The arrays of one call, as ``fused_attention`` takes them; past: float, whatever the cache holds.

    ``query``: [batch, heads, tokens, size], and so on; any strides, the last axis contiguous.
    """

    query: Array
    key: Array
    value: Array
    past_key: Array | None = None
    past_value: Array | None = None
    past_lengths: Array | None = None
    bias: Array | None = None
    cos: Array | None = None
    sin: Array | None = None
    query_norm: Array | None = None
    key_norm: Array | None = None
    scale: float | None = None
    softcap: float = 0.0
    window: int = 0
    causal: int = 0
    rotary: str = ""
    epsilon: float = 1e-6


def stored(rows: Array, cache: str) -> Array:
    """Float rows as the cache holds them: int8 codes carry their float32 scale behind them."""
    if cache != "int8":
        return rows.astype(cache)
    top = np.abs(rows).max(-1, keepdims=True).astype(np.float32)
    codes = np.rint(np.divide(rows * np.float32(127), top, out=np.zeros_like(rows), where=top > 0))
    return np.concatenate([codes.astype(np.int8), (top / 127).astype("<f4").view(np.int8)], -1)


def restored(cache: Array) -> Array:
    """What ``stored`` rows stand for, in float32."""
    if cache.dtype != np.int8:
        return cache.astype(np.float32)
    scales = np.ascontiguousarray(cache[..., -4:]).view("<f4")
    return cache[..., :-4].astype(np.float32) * scales


class Kernel:
    """The harness, compiled with some flags."""

    def __init__(self, folder: Path, isa: Isa, flags: Sequence[str] = ()) -> None:
        library = folder / "attention.so"
        toolchain = find_toolchain(isa)
        toolchain.compile([HARNESS], library, [*toolchain.cpu(isa), *flags])
        self._library = ctypes.CDLL(str(library))
        self._library.scratch_bytes.restype = ctypes.c_size_t

    def __call__(
        self, case: Case, cache: str = "", threads: int = 1
    ) -> tuple[Array, Array | None, Array | None]:
        """The output, and the key and value cache as stored afterwards."""
        past = [None if x is None else stored(x, cache) for x in (case.past_key, case.past_value)]
        batch, heads, tokens = case.query.shape[:3]
        y = np.full((batch, tokens, heads, case.value.shape[3]), np.nan, "f4").transpose(0, 2, 1, 3)
        held: list[Array] = []
        spec, args = _structs(case, past, cache, y, held)
        assert self._library.run_attention(ctypes.byref(spec), ctypes.byref(args), threads)
        return y, past[0], past[1]

    def scratch(self, case: Case, cache: str, threads: int) -> int:
        """Bytes of scratch of all workers together."""
        past = [None if x is None else stored(x, cache) for x in (case.past_key, case.past_value)]
        spec, args = _structs(case, past, cache, case.query, [])
        return int(self._library.scratch_bytes(ctypes.byref(spec), ctypes.byref(args), threads))


def _structs(
    case: Case, past: list[Array | None], cache: str, y: Array, held: list[Array]
) -> tuple[Spec, Args]:
    heads, kv_heads = case.query.shape[1], case.key.shape[1]
    scale = case.query.shape[3] ** -0.5 if case.scale is None else case.scale
    pairs = 0 if case.cos is None else case.cos.shape[-1]
    sizes = (heads, kv_heads, case.query.shape[3], case.value.shape[3])
    spec = Spec(
        *sizes, scale, case.softcap, case.epsilon, case.window, case.causal, ROTARY.index(case.rotary), pairs
    )
    spec.cache, spec.key_norm = CACHES.index(cache), case.key_norm is not None
    args = Args(batch=case.query.shape[0], tokens=case.query.shape[2], keys=case.key.shape[2])
    for name, x in (("query", case.query), ("key", case.key), ("value", case.value), ("y", y)):
        setattr(args, name, x.ctypes.data)
        setattr(args, f"{name}_at", Strides(*(s // 4 for s in x.strides[:3])))
    if past[0] is not None and past[1] is not None and case.past_lengths is not None:
        args.capacity = past[0].shape[2]
        args.past_key, args.past_value = past[0].ctypes.data, past[1].ctypes.data
        args.lengths = case.past_lengths.ctypes.data
    if case.bias is not None:
        at = [0 if n == 1 else s // 4 for n, s in zip(case.bias.shape, case.bias.strides, strict=True)]
        args.bias, args.bias_at, args.bias_key = case.bias.ctypes.data, Strides(*at[:3]), at[3]
    if case.cos is not None and case.sin is not None:
        args.cos, args.sin = case.cos.ctypes.data, case.sin.ctypes.data
        args.angle_batch = 0 if case.cos.shape[0] == 1 else case.cos.strides[0] // 4
        args.angle_token = case.cos.strides[1] // 4
    for name in ("query_norm", "key_norm"):
        if (g := getattr(case, name)) is not None:
            setattr(args, name, g.ctypes.data)
    return spec, args
