"""Integer linear layers of the native kernels against float64: formats, sizes, epilogues, threads, ISAs."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miaotui.compiler.codegen.isa import ISAS, can_run, isa_of
from miaotui.compiler.codegen.native.pack.blocked import pack_blocked, pack_gated, pack_rows
from miaotui.compiler.codegen.native.toolchain import find_toolchain
from miaotui.compiler.dialect.linear import ACTIVATIONS
from miaotui.compiler.options import Target
from native.int_weights import INT8, MAKERS, UINT8, tensor
from native.linear_cases import Array, Case, Kernels, contents
from support.quick_c import quick

TOLERANCE = 2e-5
"""Greatest error against the largest sum of absolute products; the reference rounds activations too."""

CFLAGS = tuple(os.environ.get("MIAOTUI_TEST_CFLAGS", "").split())

FLAGS = {
    "avx512-vnni": ("-march=x86-64-v4", "-mavx512vnni"),
    "avx512": ("-march=x86-64-v4",),
    "avx-vnni": ("-march=x86-64-v3", "-mavx512vl", "-mavx512vnni", "-DMIAOTUI_ISA_AVX_VNNI"),
    "avx2": ("-march=x86-64-v3",),
    "portable": (),
}
NEEDS = {
    "avx512-vnni": "x86-64-v4-vnni",
    "avx512": "x86-64-v4",
    "avx-vnni": "x86-64-v4-vnni",
    "avx2": "x86-64-v3",
}


@pytest.fixture(scope="session", params=FLAGS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The kernels for every instruction set that this machine runs."""
    if request.param in NEEDS and not can_run(ISAS[NEEDS[request.param]]):
        pytest.skip(f"this CPU has no {request.param}")
    return Kernels(tmp_path_factory.mktemp("linear"), (*quick(), *FLAGS[request.param], *CFLAGS))


def a_case(name: str, count: int, rows: int, columns: int, seed: int = 0) -> Case:
    random = np.random.default_rng(seed)
    weight = MAKERS[name][0](random, rows, columns)
    x = random.standard_normal((count, columns)).astype(np.float32)
    return Case(x, [weight.numpy().astype(np.float64)], [pack_blocked(weight)])


def assert_close(case: Case, y: Array) -> None:
    """Errors are those of float32 sums: small against the sum of the products' sizes."""
    expected = case.expected()
    assert y.shape == expected.shape
    sizes = max(float((np.abs(case.x) @ np.abs(w).T).max(initial=1e-6)) for w in case.weights)
    if case.norm or case.gated or case.activation:
        sizes = max(1.0, float(np.abs(expected).max(initial=1.0)))
    np.testing.assert_allclose(y, expected, rtol=0, atol=TOLERANCE * sizes)


@pytest.mark.parametrize("name", MAKERS)
def test_packs_into_the_smallest_format_and_back(kernels: Kernels, name: str) -> None:
    make, step, form = MAKERS[name]
    weight = make(np.random.default_rng(1), 37, 3 * step)
    packed = pack_blocked(weight)
    assert packed.format == f"WEIGHT_INT({form})"
    tile = kernels.library.bytes_of_tile(ctypes.byref(kernels.part(packed)), 3 * step)
    assert packed.size == 3 * tile
    np.testing.assert_array_equal(kernels.unpacked(packed), weight.numpy())


@pytest.mark.parametrize("count", [1, 2, 7, 17])
@pytest.mark.parametrize("name", MAKERS)
def test_every_format_agrees_with_float64(kernels: Kernels, name: str, count: int) -> None:
    case = a_case(name, count, 40, 3 * MAKERS[name][1])
    assert_close(case, kernels(case))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_size_and_thread_count(kernels: Kernels, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(MAKERS)))
    rows, count = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 40))
    columns = MAKERS[name][1] * data.draw(st.integers(1, 4))
    case = a_case(name, count, rows, columns, data.draw(st.integers(0, 99)))
    y = kernels(case)
    assert_close(case, y)
    for threads in (2, 3, 4):
        np.testing.assert_array_equal(kernels(case, threads), y)
    if count:
        last = replace(case, x=case.x[-1:])
        np.testing.assert_array_equal(kernels(last), y[-1:])


@pytest.mark.parametrize("columns", [1, 31, 33, 70])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", [INT8, UINT8])
def test_scales_per_row_take_any_columns(kernels: Kernels, dtype: object, zero: bool, columns: int) -> None:
    random = np.random.default_rng(columns)
    low, high = (-128, 127) if dtype == INT8 else (0, 255)
    codes = random.integers(low, high + 1, (21, columns)).astype(dtype.numpy())  # type: ignore[attr-defined]
    scale = random.standard_normal(21).astype(np.float32) * np.float32(0.01)
    zeros = random.integers(low, high + 1, 21).astype(codes.dtype) if zero else None
    packed = pack_rows(tensor(codes), tensor(scale), None if zeros is None else tensor(zeros))
    less = codes.astype(np.float32) if zeros is None else codes.astype(np.float32) - zeros[:, None]
    weight = less * scale[:, None]
    np.testing.assert_array_equal(kernels.unpacked(packed), weight)
    x = random.standard_normal((9, columns)).astype(np.float32)
    case = Case(x, [weight.astype(np.float64)], [packed])
    assert_close(case, kernels(case, 2))


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_epilogues(kernels: Kernels, gated: bool, activation: str, count: int) -> None:
    random = np.random.default_rng(count)
    pair = [MAKERS["q4_1"][0](random, 45, 96) for _ in range(2)]
    packed = [pack_gated(*pair)] if gated else [pack_blocked(w) for w in pair]
    width = 45 if gated else 90

    def floats(*shape: int) -> Array:
        return random.standard_normal(shape).astype(np.float32)

    case = Case(
        floats(count, 96),
        [w.numpy().astype(np.float64) for w in pair],
        packed,
        norm="layer",
        activation=activation,
        gated=gated,
        norm_scale=floats(96),
        norm_bias=floats(96),
        biases=(floats(45), floats(45), None),
        residual=floats(count, width),
    )
    y = kernels(case)
    np.testing.assert_allclose(y, case.expected(), rtol=0, atol=2e-3)
    np.testing.assert_array_equal(kernels(case, 3), y)


@pytest.mark.parametrize(
    "names", [("q4_k", "q6_k"), ("q4_0", "q4_1"), ("q4_1", "uint4_zero"), ("uint8_zero_64", "q4_1")]
)
def test_gate_and_up_of_different_formats_share_one(kernels: Kernels, names: tuple[str, str]) -> None:
    random = np.random.default_rng(5)
    pair = [MAKERS[name][0](random, 24, 256) for name in names]
    packed = pack_gated(*pair)
    x = random.standard_normal((5, 256)).astype(np.float32)
    case = Case(x, [w.numpy().astype(np.float64) for w in pair], [packed], gated=True)
    assert_close(case, kernels(case))


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_integers_never_saturate(kernels: Kernels, bits: int) -> None:
    random = np.random.default_rng(bits)
    most = (1 << bits) - 1
    for codes in (random.integers(0, most + 1, (4, 16, 4)), np.full((4, 16, 4), most), np.zeros((4, 16, 4))):
        for x in (random.integers(-127, 128, 16), np.full(16, 127), np.full(16, -127)):
            held, values = codes.astype(np.uint8), x.astype(np.int8)
            sums = np.empty(16, np.int32)
            kernels.library.run_dot(bits, *(ctypes.c_void_p(a.ctypes.data) for a in (held, values, sums)))
            expected = np.einsum("jik,jk->i", held.astype(np.int64), values.astype(np.int64).reshape(4, 4))
            np.testing.assert_array_equal(sums, expected)


def test_activations_are_rounded_alike_everywhere(kernels: Kernels) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 32)).astype(np.float32) * 10 ** random.uniform(-9, 9, (64, 1))
    x = x.astype(np.float32)
    x[0], x[1, 0], x[2] = 0, 1e-38, np.arange(32) + 0.5 - 16
    x[2, 0] = 127  # the rest are ties
    codes, scales, less = np.empty((64, 32), np.int8), np.empty(64, np.float32), np.empty(64, np.int32)
    at = [ctypes.c_void_p(a.ctypes.data) for a in (x, codes, scales, less)]
    kernels.library.run_quantize(at[0], ctypes.c_int64(x.size), *at[1:])
    most = np.abs(x).max(-1, keepdims=True)
    factor = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most >= 1e-30)
    np.testing.assert_array_equal(codes, np.rint(x * factor))
    np.testing.assert_array_equal(less, -codes.sum(-1, dtype=np.int32))
    np.testing.assert_array_equal(scales, np.where(most >= 1e-30, most, 0)[:, 0] / np.float32(127))


def test_halves(kernels: Kernels) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    y = np.empty(1 << 16, np.float32)
    at = [ctypes.c_void_p(a.ctypes.data) for a in (halves, y)]
    kernels.library.run_halves(at[0], ctypes.c_int64(halves.size), at[1])
    wide = halves.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(y, wide)
    np.testing.assert_array_equal(np.signbit(y)[wide == 0], np.signbit(wide)[wide == 0])


def test_not_a_number_stays_in_its_row(kernels: Kernels) -> None:
    case = a_case("q8_0", 9, 20, 64)
    case.x[4, 40] = np.nan
    case.x[6, 3] = np.inf
    y = kernels(case)
    assert np.isnan(y[4]).all()
    assert not np.isfinite(y[6]).any()
    rest = [0, 1, 2, 3, 5, 7, 8]
    np.testing.assert_array_equal(y[rest], kernels(replace(case, x=case.x[rest])))


def test_large_weights_are_packed_piece_by_piece() -> None:
    weight = MAKERS["q4_0"][0](np.random.default_rng(0), 1030, 8192)
    packed = pack_blocked(weight)
    sizes = [c.size for c in packed.chunks()]
    assert len(sizes) > 1 and sum(sizes) == packed.size
    assert contents(packed).size >= packed.size


@pytest.mark.parametrize("name", ["q4_1", "q8_0", "q5_k", "q6_k"])
def test_specialised_code_gives_the_same(name: str, tmp_path: Path) -> None:
    toolchain, isa = find_toolchain(), isa_of(Target("cpu"))
    form = f"-DFORMAT=WEIGHT_INT({MAKERS[name][2]})"
    group = 16 if name == "q6_k" else 32
    # SmolLM2's formats are compiled with -O3 for its own tests.
    flags = quick() if name in ("q4_1", "q8_0") else ()
    kernels = Kernels(tmp_path, (*toolchain.cpu(isa), *flags, form, f"-DGROUP={group}", *CFLAGS))
    for count in (1, 2, 4, 8, 15, 16):
        case = a_case(name, count, 72, 2 * MAKERS[name][1])
        y = kernels(case)
        assert_close(case, y)
        np.testing.assert_array_equal(kernels(case, 3), y)
        np.testing.assert_array_equal(kernels(replace(case, x=case.x[-1:])), y[-1:])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="preloads gcc's libraries")
def test_nothing_is_read_or_written_outside_of_arrays() -> None:
    """This file again, with the address and undefined-behaviour sanitizers."""
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
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "avx512-vnni or avx2 or portable"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
