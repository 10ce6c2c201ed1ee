"""How kernels of a GPU get their threads: by rule, and what comes out where a thread works alone."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.codegen.tvm import threads
from miaotui.compiler.codegen.tvm.kernels import Kernel
from miaotui.compiler.codegen.tvm.module import module_of
from miaotui.compiler.codegen.tvm.pipeline import FUSE, relax_passes
from miaotui.compiler.codegen.tvm.target import spelled
from miaotui.compiler.codegen.tvm.threads import THREADS, threads_bound
from miaotui.compiler.codegen.tvm.versions import require_tvm
from miaotui.compiler.ir.builder import FLOAT16, Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from support.cuda_on_cpu import OnCpu

RANDOM = np.random.default_rng(0)


def kernels_of(program: Program) -> dict[str, Any]:
    """The program's kernels with threads, by name."""
    tvm = require_tvm()
    module = module_of(tvm, program, None).module
    with tvm.target.Target(spelled(Target("cuda", "sm_90"))):
        for step in (*relax_passes(FUSE), threads_bound()):
            module = step(module)
    functions = {str(g.name_hint): f for g, f in module.functions_items()}
    return {name: f for name, f in functions.items() if isinstance(f, tvm.tirx.PrimFunc)}


def test_products_share_memory_and_short_sums_are_a_threads() -> None:
    b = Builder()
    x = b.input("x", ("batch", 16, 12, 12))
    h = b.op("Conv", x, b.weight("w", RANDOM.standard_normal((32, 16, 3, 3))), pads=[1, 1, 1, 1])
    h = b.op("Relu", b.op("Conv", h, b.weight("d", RANDOM.standard_normal((32, 1, 3, 3))), group=32))
    b.output(b.op("GlobalAveragePool", h), "y")
    found = {name: f.script() for name, f in kernels_of(b.program()).items()}
    assert 'scope="shared"' in found["conv"] and 'sblock("pad")' not in found["conv"]
    assert 'scope="local"' in found["fused_conv1_relu"] and "shared" not in found["fused_conv1_relu"]
    assert all('thread="threadIdx.x"' in text for text in found.values())


def test_halves_go_to_tensor_cores() -> None:
    b = Builder()
    x = b.input("x", ("batch", "tokens", 64), FLOAT16)
    h = b.op("MatMul", x, b.weight("w", RANDOM.standard_normal((64, 64)).astype(np.float16)))
    b.output(b.op("Attention", h, x, x, q_num_heads=4, kv_num_heads=2, is_causal=1), "y")
    names = kernels_of(b.program())
    assert {"tensor_matmul_fp16_64x64_64x64x32", "flash_fp16_4x2x16x32_add1"} <= set(names)


def test_bias_and_activation_stacks_and_transposed_factors_go_to_tensor_cores_too() -> None:
    b, kind = Builder(), np.float16
    x = b.input("x", ("batch", 32, 64), FLOAT16)
    weight, bias = (
        b.weight(name, RANDOM.standard_normal(shape).astype(kind))
        for name, shape in (("w", (64, 64)), ("c", (64,)))
    )
    h = b.op("Gelu", b.op("Add", bias, b.op("MatMul", x, weight)))
    flat = b.op("Reshape", h, b.weight("flat", np.array([-1, 64], np.int64)))
    g = b.op("Relu", b.op("Gemm", flat, weight, bias, transB=1))
    scores = b.op("MatMul", x, b.op("Transpose", h, perm=[0, 2, 1]))
    mask = b.input("mask", ("batch", 1, 1, 32), FLOAT16)
    a = b.op("Attention", x, h, h, mask, q_num_heads=4, kv_num_heads=4)
    for name, value in {"g": g, "s": scores, "a": a}.items():
        b.output(value, name)
    names = set(kernels_of(b.program()))
    ours = {name for name in names if name.startswith(("tensor_matmul", "flash"))}
    assert ours == {
        "tensor_matmul_fp16_64x64_bias_gelu_64x64x32",
        "tensor_matmul_fp16_64x64_nk_bias_relu_64x64x32",
        "tensor_matmul_fp16_64x32_nk_batched_64x64x32",
        "flash_fp16_4x4x16x16_add1_row",
    }
    assert not any("matmul" in name or "gemm" in name or "gelu" in name for name in names - ours), names


def test_a_product_that_others_read_keeps_its_result() -> None:
    b = Builder()
    x = b.input("x", ("rows", 64), FLOAT16)
    h = b.op("MatMul", x, b.weight("w", RANDOM.standard_normal((64, 64)).astype(np.float16)))
    b.output(h, "h")
    b.output(b.op("Relu", h), "y")
    assert {"tensor_matmul_fp16_64x64_64x64x32", "relu"} <= set(kernels_of(b.program()))


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("nvcc") or not shutil.which("g++"), reason="needs CUDA's headers and g++"
)
def test_a_thread_alone_computes_what_the_reference_does(tmp_path: Path) -> None:
    b = Builder()
    x = b.input("x", (2, 6, 9, 7))
    constants = [RANDOM.standard_normal(shape).astype(np.float32) for shape in ((6, 1, 3, 3), (6,))]
    weights = [b.weight(f"w{n}", array) for n, array in enumerate(constants)]
    h = b.op("Conv", x, *weights, group=6, pads=[1, 0, 1, 2], strides=[2, 1])
    b.output(b.op("Relu", h), "y")
    program = b.program()
    [(name, function)] = kernels_of(program).items()
    kernel = OnCpu(Kernel(name, function.with_attrs({"global_symbol": name, "shared_memory": 0})), tmp_path)
    given = RANDOM.standard_normal((2, 6, 9, 7)).astype(np.float32)
    want = evaluate(program.main, {"x": given})["y"]
    out = np.full(want.shape, np.nan, np.float32)
    names = [name.removesuffix("_ptr") for name in kernel.parameters]
    arrays = dict(zip(names, [given, *constants, out], strict=True))
    kernel((-(-out.size // THREADS), 1, 1), **arrays)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


def test_while_a_rule_runs_the_stack_has_frames_but_no_source() -> None:
    seen = []

    class Asking:
        def apply(self, function: Any, target: Any, tunable: bool) -> None:
            seen.extend(inspect.stack())

    threads._Tried(Asking()).apply(None, None, False)
    own, *_ = (frame for frame in seen if frame.filename == __file__)
    assert own.frame.f_code.co_name == own.function == "apply" and own.code_context is None
    names = [frame.function for frame in inspect.stack()]
    assert [frame.function for frame in seen][-len(names) :] == names
    assert inspect.stack()[0].code_context is not None
