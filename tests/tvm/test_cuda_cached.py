"""Attention over a KV cache on a GPU: its CUDA code, run on the CPU, and whole decoders that hold it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.codegen.tvm.backend import KERNELS
from miaotui.compiler.codegen.tvm.cuda_listing import fatbins_in
from miaotui.compiler.codegen.tvm.kernels.cuda_attention import Heads
from miaotui.compiler.codegen.tvm.kernels.cuda_cached import Scores, cache_write, cached_attention
from miaotui.compiler.codegen.tvm.support import reason_against
from miaotui.compiler.dialect import cache
from miaotui.compiler.errors import PlacementError
from miaotui.compiler.options import CompileOptions, Target
from miaotui.driver.context import check_placement
from miaotui.driver.progress import Journal, Silent
from support import tvm_programs
from support.cuda_on_cpu import NUMPY, OnCpu
from support.decode_graphs import Layers

BOUND = {"float32": 1e-5, "float16": 1e-3}
RANDOM = np.random.default_rng(0)

BIASED = {"softcap": 5.0, "window": 6, "bias": (False, True, False, False)}

needs_nvcc = pytest.mark.skipif(
    not shutil.which("nvcc") or not shutil.which("g++"), reason="needs CUDA's headers and g++"
)

BUILD = """
import sys
from pathlib import Path
from test_cuda_cached import kernels_of_a_decoder
print(*kernels_of_a_decoder(Path(sys.argv[1])), sep="\\n")
"""


def numbers(dtype: str, *shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(NUMPY[dtype])


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "heads", "tokens", "options"),
    [
        (
            "float32",
            Heads(4, 2, 48, 40),
            2,
            {"softcap": 5.0, "window": 6, "bias": (False, True, False, False)},
        ),
        ("float16", Heads(2, 2, 32, 160), 1, {}),
    ],
)
def test_sees_what_each_row_holds_and_no_more(
    dtype: str, heads: Heads, tokens: int, options: dict[str, Any], tmp_path: Path
) -> None:
    lengths, capacity = np.array([9, 0], np.int64), 14
    q = numbers(dtype, 2, heads.count, tokens, heads.size)
    k = numbers(dtype, 2, heads.kv_count, tokens, heads.size)
    v = numbers(dtype, 2, heads.kv_count, tokens, heads.value_size)
    pasts = [np.full((2, heads.kv_count, capacity, x.shape[3]), np.nan, x.dtype) for x in (k, v)]
    for past in pasts:
        past[0, :, :9] = numbers(dtype, heads.kv_count, 9, past.shape[3])
    bias = numbers("float32", 2, 1, tokens, 9 + tokens) if options else None
    fixed = {"scale": 0.2, "softcap": options.get("softcap", 0.0), "window": options.get("window", 0)}
    with np.errstate(invalid="ignore"):
        kept = [np.nan_to_num(past) for past in pasts]
    want, *present = cache.cached_attention(q, k, v, *kept, lengths, bias, **fixed)

    for new, past, wanted in zip((k, v), pasts, present, strict=True):
        write = OnCpu(cache_write(heads.kv_count, new.shape[3], dtype), tmp_path)
        sizes = {"batch": 2, "tokens": tokens, "capacity": capacity}
        write((tokens, heads.kv_count, 2), new=new, lengths=lengths, cache=past, **sizes)
        for row, length in enumerate(lengths + tokens):
            np.testing.assert_array_equal(past[row, :, :length], wanted[row, :, :length])
            assert np.isnan(past[row, :, length:].astype(np.float32)).all()

    out = np.full(want.shape, np.nan, want.dtype)
    given = {} if bias is None else {"bias": bias, "total": bias.shape[3]}
    sizes = {"batch": 2, "tokens": tokens, "keys": capacity}
    kernel = OnCpu(cached_attention(heads, dtype, Scores(0.2, **options)), tmp_path)
    arrays = {"query": q, "key": pasts[0], "value": pasts[1], "lengths": lengths, "out": out, **given}
    kernel((tokens, heads.count, 2), **arrays, **sizes)
    assert np.max(np.abs(out.astype(np.float64) - want)) < BOUND[dtype] * max(1.0, np.max(np.abs(want)))


def kernels_of_a_decoder(folder: Path) -> list[str]:
    """The kernels of a Llama-like decoder's library in ``folder``, each with where it was compiled for."""
    build = tvm_programs.built(Layers().program(), folder, Target("cuda", "sm_90"))
    assert len(fatbins_in(folder / build.entries["decode"])) == 1
    return [f"{kernel['name']} {kernel['arch']}" for kernel in json.loads(build.settings[KERNELS])]


@needs_nvcc
@pytest.mark.slow
def test_a_decoder_is_compiled_with_its_cache_in_place(tmp_path: Path) -> None:
    # In a process of its own: on a machine without a driver its stand-in stays loaded.
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    listed = done.stdout.splitlines()
    assert {"cached_fp32_4x2x16x16_kernel sm_90", "write_cache_fp32_2x16_kernel sm_90"} <= set(listed)
    assert not any(line.startswith("reshape") for line in listed), "views cost nothing"


def test_placement_is_of_no_concern_to_tvm() -> None:
    program, options = Layers(layers=1).program(), CompileOptions(target=Target("cuda"))
    with pytest.raises(PlacementError, match="has no kernel for miaotui"):
        check_placement(program, replace(options, backend="ort"), Journal(Silent()))
    check_placement(program, replace(options, backend="tvm"), Journal(Silent()))


def test_halves_are_for_gpus() -> None:
    [attention] = [n for n in Layers(layers=1).model().graph if n.op_type == "CachedAttention"]
    assert reason_against(attention, Target("cuda")) is None
    assert reason_against(attention, Target("cpu")) is None
    for value in attention.inputs[:5]:
        assert value is not None
        value.dtype = value.dtype.__class__.FLOAT16
    assert reason_against(attention, Target("cuda")) is None
    assert "no float32" in str(reason_against(attention, Target("cpu")))
