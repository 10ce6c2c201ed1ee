"""The native attention kernel against its float64 reference: caches, masks, sizes, threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miaotui.compiler.codegen.isa import ISAS, can_run
from miaotui.compiler.dialect.fused_attention import fused_attention
from miaotui.compiler.dialect.linear import normalized
from miaotui.compiler.dialect.rotary import rotate
from native.attention_cases import Array, Case, Kernel, restored, stored
from support import quick_c

TOLERANCE = {"": 1e-5, "float32": 1e-5, "float16": 2e-3, "int8": 2e-2}
"""Greatest error by the cache's dtype, against the range of the values."""


FLAGS = tuple(os.environ.get("MIAOTUI_TEST_CFLAGS", "").split())
KERNELS = [isa for isa in ISAS.values() if can_run(isa)][: 1 if FLAGS else None]


@pytest.fixture(scope="session", params=KERNELS, ids=lambda isa: isa.name)
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """Warnings are errors. A spec that is known only when it runs needs no -O3."""
    return Kernel(tmp_path_factory.mktemp("attention"), request.param, (*quick_c.plain(), "-Werror", *FLAGS))


def expected(case: Case) -> Array:
    """The operator's own reference, in float64."""
    if not case.query.size:
        return np.zeros((*case.query.shape[:3], case.value.shape[3]))
    wide = {
        f.name: x.astype(np.float64)
        if isinstance(x := getattr(case, f.name), np.ndarray) and x.dtype == "f4"
        else x
        for f in fields(Case)
    }
    y = fused_attention(**wide)[0]
    assert y is not None
    return y


def over_stored(case: Case, keys: Array, values: Array) -> Array:
    """The reference over what the cache holds, so that only the arithmetic differs."""
    assert case.past_lengths is not None
    places = case.past_lengths[:, None] + np.arange(case.query.shape[2])
    held = [restored(x) for x in (keys, values)]
    fresh = [np.take_along_axis(x, places[:, None, :, None], 2) for x in held]
    query = turned(case, case.query, case.query_norm)
    bare = replace(case, cos=None, sin=None, query_norm=None, key_norm=None)
    return expected(
        replace(bare, query=query, key=fresh[0], value=fresh[1], past_key=held[0], past_value=held[1])
    )


def turned(case: Case, rows: Array, norm: Array | None) -> Array:
    """Query or key rows after norm and rotation, in float64."""
    wide = rows.astype(np.float64) if norm is None else normalized(rows, "rms", norm, None, case.epsilon)
    if case.cos is None or case.sin is None:
        return wide
    turns = (x.astype(np.float64)[:, None] for x in (case.cos, case.sin))
    return rotate(wide, *turns, case.rotary == "interleaved")


def check(kernel: Kernel, case: Case, cache: str = "") -> None:
    y, keys, values = kernel(case, cache)
    want = expected(case)
    if keys is not None and values is not None:
        check_cache(case, cache, keys, values)
        want = over_stored(case, keys, values)
    reach = max(
        1.0, *(float(np.abs(x).max(initial=0)) for x in (case.value, case.past_value) if x is not None)
    )
    assert np.abs(y - want).max(initial=0) <= TOLERANCE[cache] * reach
    for threads in (2, 3):
        for one, many in zip((y, keys, values), kernel(case, cache, threads), strict=True):
            np.testing.assert_array_equal(one, many)


def check_cache(case: Case, cache: str, keys: Array, values: Array) -> None:
    """New rows lie behind each row's length, all others are as they were."""
    assert case.past_key is not None and case.past_value is not None and case.past_lengths is not None
    new_keys = turned(case, case.key, case.key_norm).astype("f4")
    for present, past, new in ((keys, case.past_key, new_keys), (values, case.past_value, case.value)):
        want = stored(past, cache)
        for row, at in enumerate(case.past_lengths):
            want[row, :, at : at + new.shape[2]] = stored(new[row], cache)
        here, there = restored(present), restored(want)
        step = {"float32": 1e-6, "float16": 2**-10, "int8": 1 / 126}[cache]
        reach = np.abs(there).max(-1, initial=1e-9, keepdims=True)
        assert (np.abs(here - there) <= step * reach).all()
        old = np.arange(past.shape[2]) < case.past_lengths[:, None]
        old |= np.arange(past.shape[2]) >= case.past_lengths[:, None] + new.shape[2]
        np.testing.assert_array_equal(present.transpose(0, 2, 1, 3)[old], want.transpose(0, 2, 1, 3)[old])


@st.composite
def cases(draw: Callable[..., int], cached: bool) -> Case:
    def among(*values: object) -> object:
        return draw(st.sampled_from(values))

    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kv_heads, groups = among(1, 2, 3), among(1, 2, 3, 4, 5, 8)
    size, batch = among(4, 16, 24, 32, 40, 64, 80, 96, 100, 128, 256), among(1, 2, 3, 5)
    value_size = among(size, size, size, 20, 64, 33)
    tokens = draw(st.sampled_from((0, 1, 1, 1, 2, 3, 7, 8, 17, 33, 65, 100)))
    heads = kv_heads * groups

    def make(*shape: int) -> Array:
        """Laid out [batch, token, head, ...] with room beside the rows."""
        b, h, t, d = shape
        x = rng.standard_normal((b, t, h, d + 3), dtype=np.float32)
        return x[..., :d].transpose(0, 2, 1, 3)

    keys = tokens if cached else among(tokens, draw(st.integers(1, 300)))
    case = Case(
        make(batch, heads, tokens, size),
        make(batch, kv_heads, keys, size),
        make(batch, kv_heads, keys, value_size),
    )
    total = keys
    if cached:
        lengths = np.array(
            [draw(st.sampled_from((0, 1, 15, 64, 100, 255, 256, 300, 600))) for _ in range(batch)]
        )
        total = int(lengths.max()) + tokens
        past = [
            rng.standard_normal((batch, kv_heads, total + draw(st.integers(0, 9)), n), dtype=np.float32)
            for n in (size, value_size)
        ]
        past[1] = past[1][:, :, : past[0].shape[2]] if past[1].shape[2] >= past[0].shape[2] else past[1]
        capacity = min(p.shape[2] for p in past)
        past = [np.ascontiguousarray(p[:, :, :capacity]) for p in past]
        case = replace(case, past_key=past[0], past_value=past[1], past_lengths=lengths)
    if draw(st.booleans()):
        shape = (
            [among(1, n) for n in (batch, heads, tokens, total)]
            if not cached
            else [among(1, batch), among(1, heads), tokens, among(1, total)]
        )
        bias = rng.standard_normal(shape).astype(np.float32)
        hidden = among(None, -np.inf, np.finfo(np.float32).min)
        if hidden is not None:
            bias[rng.random(shape) < 0.4] = hidden
        case = replace(case, bias=bias)
    if (cached or keys == tokens) and (rotary := among("", "half", "interleaved")):
        pairs = among(size // 2, max(1, size // 4))
        angles = rng.uniform(0, 6, (among(1, batch), tokens, pairs))
        case = replace(case, rotary=rotary, cos=np.cos(angles).astype("f4"), sin=np.sin(angles).astype("f4"))
    if draw(st.booleans()):
        g = (1 + 0.1 * rng.standard_normal((2, size))).astype("f4")
        case = replace(case, query_norm=g[0], key_norm=g[1], epsilon=1e-5)
    return replace(
        case,
        causal=int(draw(st.booleans())) if not cached else 1,
        window=among(0, 0, 1, 5, 64, 200),
        softcap=among(0.0, 0.0, 5.0, 30.0),
        scale=among(None, 0.3),
    )


RANDOM = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))


@RANDOM
@given(case=cases(cached=False))
def test_matches_reference_without_cache(kernel: Kernel, case: Case) -> None:
    check(kernel, case)


@RANDOM
@given(case=cases(cached=True), cache=st.sampled_from(("float32", "float16", "int8")))
def test_matches_reference_over_cache(kernel: Kernel, case: Case, cache: str) -> None:
    check(kernel, case, cache)


def plain(lengths: Sequence[int], tokens: int, heads: int, kv_heads: int, size: int, **options: Any) -> Case:
    """Without extras; ``lengths`` positions are in the cache already, which has no room to spare."""
    rng = np.random.default_rng(len(lengths) * 1000 + tokens)

    def make(*shape: int) -> Array:
        return rng.standard_normal((len(lengths), *shape), dtype=np.float32)

    fresh = (make(heads, tokens, size), make(kv_heads, tokens, size), make(kv_heads, tokens, size))
    capacity = max(lengths) + tokens
    past = (make(kv_heads, capacity, size), make(kv_heads, capacity, size), np.array(lengths))
    return Case(*fresh, *past, causal=1, **options)


@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
@pytest.mark.parametrize(
    "case",
    [
        plain([2500, 0, 1023], 1, 6, 2, 64),
        plain([2500, 0, 1023], 20, 6, 2, 64),
        plain([3, 300], 300, 3, 1, 64),
        plain([700], 150, 4, 4, 40, window=100),
        plain([9], 5, 71, 1, 64),
    ],
    ids=["decode", "split blocks", "prefill", "window", "one kv head"],
)
def test_long_contexts_and_prompts(kernel: Kernel, case: Case, cache: str) -> None:
    check(kernel, case, cache)


@pytest.mark.parametrize("cache", ["float16", "int8"])
@pytest.mark.parametrize("tokens", [1, 64])
def test_rounded_cache_stays_near_exact_attention(kernel: Kernel, cache: str, tokens: int) -> None:
    case = plain([500, 77], tokens, 6, 2, 64)
    y, want = kernel(case, cache)[0], expected(case)
    assert np.abs(y - want).max() <= TOLERANCE[cache] * np.abs(case.value).max()


def test_reaches_32768_positions_with_little_scratch(kernel: Kernel) -> None:
    case = plain([32767], 1, 3, 1, 64)
    check(kernel, case, "float16")
    assert case.past_key is not None
    assert kernel.scratch(case, "float16", threads=1) < case.past_key.nbytes // 50


def test_rows_that_see_nothing_are_zero(kernel: Kernel) -> None:
    for tokens in (1, 40):
        case = plain([30], tokens, 2, 1, 32)
        total = 30 + tokens
        case = replace(case, bias=np.full((1, 1, 1, total), -np.inf, "f4").repeat(tokens, 2))
        for cache in ("float32", "float16", "int8"):
            assert not kernel(case, cache)[0].any()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="preloads gcc's libraries")
def test_nothing_is_read_or_written_outside_of_arrays() -> None:
    """This file again, with the address and undefined-behaviour sanitizers, for the best instruction set."""
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(text.strip() for text in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "MIAOTUI_TEST_CFLAGS": "-fsanitize=address,undefined",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
