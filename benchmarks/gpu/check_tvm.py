"""One run on a machine with an NVIDIA GPU: code of TVM's, compiled by nvcc, proved and timed there.

``python benchmarks/gpu/check_tvm.py`` does three things. Kernels: our tensor-core MatMul and attention
against torch's in float64, timed beside cuBLAS and scaled_dot_product_attention. Golden models: all that the
backend supports, at two sizes, against torch on the CPU; what it refuses is listed. Latency: MiniLM,
BERT-base, ResNet-50 and SmolLM2's shape beside ONNX Runtime (CUDA provider, plain export) and torch, eager
and compiled, in fp32 and fp16, with host arrays in and out. Needs nvcc and
``pip install 'miaotui[cuda,tvm,torch,huggingface]'``. ``--target cpu`` does the last two without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import interleave as shared
import miaotui
import numpy as np
from gpu.check_cuda import Case, cases, flat, plain, torch_runs
from miaotui.compiler.codegen.tvm import cuda
from miaotui.compiler.codegen.tvm.cuda_listing import with_dynamic
from miaotui.compiler.codegen.tvm.kernels import Kernel, cuda_attention, cuda_matmul
from miaotui.compiler.codegen.tvm.target import spelled
from miaotui.compiler.codegen.tvm.versions import require_tvm
from miaotui.compiler.errors import CompileError, UnsupportedError
from miaotui.compiler.options import Target
from miaotui.runtime.compare import difference, tolerance_for
from miaotui.runtime.conditions import conditions
from miaotui.runtime.timing import interleave
from support.models import MODELS, Golden

LAUNCHES = 20
"""Of a kernel between two looks at the clock, so that none waits for the host."""

BOUND = {"float16": 2e-3, "bfloat16": 1.6e-2}
"""Scaled error of a kernel against float64: its result is rounded to the type."""

MATMULS = ((128, 768, 3072), (2048, 768, 3072), (4096, 4096, 4096), (16, 4096, 4096))
"""Rows, inputs, outputs."""

ATTENTIONS = ((1, 12, 12, 64, 128, False), (8, 12, 12, 64, 512, False), (1, 32, 8, 128, 2048, True))
"""Batch, heads, heads of keys, size, sequence, causal."""


def architecture() -> Target:
    """The GPU's own."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return Target("cuda", f"sm_{major}{minor}")


def built(target: Target, *kernels: Kernel) -> Any:
    """Functions by kernel name; prints what nvcc made of them."""
    tvm = require_tvm()
    module = tvm.IRModule({kernel.name: kernel.function for kernel in kernels})
    with cuda.ahead_of_time(target) as made:
        library = tvm.compile(module, tvm.target.Target(spelled(target)))
    for kernel in with_dynamic(made.kernels, module):
        print(f"  {kernel}")
    return library


def timed(label: str, operations: float, runs: Mapping[str, Callable[[], object]]) -> None:
    """Prints microseconds and TFLOP/s of each, interleaved."""
    import torch

    def many(run: Callable[[], object]) -> Callable[[], None]:
        def called() -> None:
            for _ in range(LAUNCHES):
                run()
            torch.cuda.synchronize()

        return called

    timings = interleave({name: many(run) for name, run in runs.items()}, 50, seconds=4.0)
    for name in runs:
        seconds = timings.latency(name).median / LAUNCHES
        print(f"  {label:<34} {name:<8} {seconds * 1e6:9.1f} µs {operations / seconds / 1e12:8.1f} TFLOP/s")


def proved(label: str, dtype: str, got: Any, want: Any) -> None:
    """Raises: SystemExit if ``got`` is too far from ``want``, which is float64."""
    import torch

    torch.cuda.synchronize()
    worst = float((got.double() - want).abs().max() / want.abs().max().clamp(min=1.0))
    print(f"  {label:<34} scaled error {worst:.1e} (limit {BOUND[dtype]:g})")
    if not worst <= BOUND[dtype]:
        raise SystemExit(f"{label} is wrong: {worst:.1e}")


def check_matmul(target: Target, dtype: str, rows: int, inputs: int, outputs: int, transposed: bool) -> None:
    import torch

    def random(*shape: int) -> Any:
        return torch.randn(shape, device="cuda", dtype=getattr(torch, dtype))

    kernel = cuda_matmul.matmul(None, inputs, outputs, dtype, transposed=transposed, tiles=None)
    label = f"{dtype} {rows}x{inputs}x{outputs}{' transposed' if transposed else ''}"
    call = built(target, kernel)[kernel.name]
    a, b, y = random(rows, inputs), random(inputs, outputs), torch.empty_like(random(rows, outputs))
    given = b.T.contiguous() if transposed else b
    call(a, given, y)
    proved(label, dtype, y, a.double() @ b.double())
    operations = 2.0 * rows * inputs * outputs
    timed(label, operations, {"torch": lambda: torch.matmul(a, b, out=y), "tvm": lambda: call(a, given, y)})


def check_attention(
    target: Target, dtype: str, batch: int, heads: int, kv_heads: int, size: int, sequence: int, causal: bool
) -> None:
    import torch

    def random(count: int) -> Any:
        return torch.randn((batch, count, sequence, size), device="cuda", dtype=getattr(torch, dtype))

    kernel = cuda_attention.attention(cuda_attention.Heads(heads, kv_heads, size, size), dtype, causal=causal)
    label = f"{dtype} {batch}x{heads}/{kv_heads}x{sequence}x{size}{' causal' if causal else ''}"
    call = built(target, kernel)[kernel.name]
    q, k, v, y = random(heads), random(kv_heads), random(kv_heads), random(heads)
    call(q, k, v, y)
    attend = torch.nn.functional.scaled_dot_product_attention
    options = {"is_causal": causal, "enable_gqa": heads != kv_heads}
    proved(label, dtype, y, attend(q.double(), k.double(), v.double(), **options))
    operations = 4.0 * batch * heads * sequence * sequence * size / (2 if causal else 1)
    runs = {"torch": lambda: attend(q, k, v, **options), "tvm": lambda: call(q, k, v, y)}
    timed(label, operations, runs)


def check_kernels() -> None:
    """Every shape in both types; the first failure ends the run."""
    target = architecture()
    for dtype in BOUND:
        for shape in MATMULS:
            for transposed in (False, True):
                check_matmul(target, dtype, *shape, transposed)
        for attention in ATTENTIONS:
            check_attention(target, dtype, *attention)


def check_golden(golden: Golden, target: str, precision: str) -> str:
    """Compiled once with free dimensions, run at two sizes: "proved", or what the backend says against it."""
    import torch

    module = golden.build()
    try:
        executable = miaotui.compile(
            module, golden.inputs(batch=1), target=target, backend="tvm", precision=precision, verify=False
        )
    except UnsupportedError as error:
        return f"refused: {error.problems[0].fact}"
    with executable:
        for sizes in (golden.sizes, golden.other):
            inputs = golden.inputs(**sizes)
            with torch.no_grad():
                expected = flat(module(**{n: torch.from_numpy(a) for n, a in inputs.items()}))
            outputs, limit = executable.run(inputs), tolerance_for(precision)
            for (name, got), want in zip(outputs.items(), expected, strict=False):
                worst = difference(name, np.asarray(got), want.numpy(), limit).scaled
                if not worst <= limit:
                    raise SystemExit(
                        f"{golden.name} {precision} at {dict(sizes)}: {name} is off by {worst:.1e}"
                    )
    return "proved"


def check_goldens(target: str, precisions: list[str], only: str) -> None:
    """All golden models of torch; a table of what came of each."""
    for name, golden in MODELS.items():
        if golden.framework == "torch" and only in name:
            for precision in precisions:
                try:
                    print(f"  {name:<24} {precision}  {check_golden(golden, target, precision)}", flush=True)
                except CompileError as error:
                    print(f"  {name:<24} {precision}  failed: {error}", flush=True)


def latencies(name: str, case: Case, precision: str, target: str, seconds: float) -> Iterator[shared.Row]:
    """One model beside its peers. Raises: SystemExit if it is too far from torch on the CPU."""
    import torch

    module = case.build().eval()
    with torch.no_grad():
        expected = [
            t.numpy() for t in flat(module(**{n: torch.from_numpy(a) for n, a in case.inputs.items()}))
        ]
    options: dict[str, Any] = {"target": target, "precision": precision, "dims": case.dims, "verify": False}
    with tempfile.TemporaryDirectory() as folder, miaotui.compile(
        module, case.inputs, backend="tvm", **options
    ) as executable:  # fmt: skip
        limit = tolerance_for(precision)
        for got, want in zip(executable.run(case.inputs).values(), expected, strict=False):
            if not (worst := difference(name, np.asarray(got), want, limit).scaled) <= limit:
                raise SystemExit(f"{name} {precision} is wrong: {worst:.1e} > {limit:g}")
        path = Path(folder) / "plain.onnx"
        shared.plain_export(module, case.inputs, {}, path)
        runner = executable.runner()
        arrays = runner.check(case.inputs)
        device, half = target.partition(":")[0], precision == "fp16" and target != "cpu"
        runs: dict[str, shared.Run] = {
            shared.PLAIN: plain(path, case.inputs, f"{device.upper()}ExecutionProvider"),
            "miaotui, tvm": lambda: runner.run_arrays(arrays),
            **dict(torch_runs(module, case.inputs, device, half)),
        }
        yield from shared.race(f"{name} {precision}", 1, runs, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--part", choices=("kernels", "golden", "latency"), action="append")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--precision", choices=("fp32", "fp16"), action="append")
    parser.add_argument("--seconds", type=float, default=12.0, help="time for each race")
    parser.add_argument("--small", action="store_true", help="race the tests' tiny networks")
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    chosen = parser.parse_args()
    parts = chosen.part or (
        ["golden", "latency"] if chosen.target == "cpu" else ["kernels", "golden", "latency"]
    )
    precisions = chosen.precision or (["fp32"] if chosen.target == "cpu" else ["fp32", "fp16"])
    target = chosen.target if chosen.target == "cpu" else str(architecture())
    if "kernels" in parts:
        print("kernels")
        check_kernels()
    if "golden" in parts:
        print("golden models")
        check_goldens(target, precisions, chosen.only)
    if "latency" not in parts:
        return
    rows = [
        row
        for name, case in cases(chosen.small).items()
        if chosen.only in name
        for precision in precisions
        for row in latencies(name, case, precision, target, chosen.seconds)
    ]
    if not chosen.no_write:
        gpu = conditions(Target.parse(chosen.target)).gpu or "no GPU"
        notes = f"{gpu}. Host arrays in and out. Plain onnxruntime runs the plain fp32 export."
        shared.write(f"gpu_tvm_{chosen.target}", "TVM's code on CUDA", rows, notes)


if __name__ == "__main__":
    main()
