"""One run on a machine with an NVIDIA GPU: code of TVM's, compiled by nvcc, proved and timed in ten minutes.

``python benchmarks/gpu/check_tvm.py`` writes ``results/gpu_tvm.md`` and ``.json`` anew after every row.
Kernels: our tensor-core MatMul and attention against torch's in float64, beside cuBLAS and
scaled_dot_product_attention. Golden models in fp32, fp16 and bf16 at two sizes against their framework,
beside eager torch, tensors on the device; decoders continue text as the framework does. BERT-base, ResNet-50
and SmolLM2's shape beside ONNX Runtime (miaotui), transformers eager, torch.compile, and the plain export.
All libraries are compiled side by side from the start. ``--dry`` tries everything that needs no GPU: it
compiles the kernels for sm_90 if there is nvcc, and runs all else on the CPU. Needs nvcc and
``pip install 'miaotui[cuda,tvm,torch,keras,huggingface]'``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import interleave as shared
from gpu import check_gpu
from gpu.check_gpu import EAGER, Samples
from gpu.gpu_report import DRY, OURS, Case, Report, Row, Setting, compare, reason
from support.models import MODELS, Golden

TVM = f"{OURS}, tvm"

LAUNCHES = 20
"""Of a kernel between two looks at the clock, so that none waits for the host."""

BOUND = {"float16": 2e-3, "bfloat16": 1.6e-2}
"""Scaled error of a kernel against float64: its result is rounded to the type."""

MATMULS = ((128, 768, 3072), (2048, 768, 3072), (4096, 4096, 4096), (16, 4096, 4096))
"""Rows, inputs, outputs."""

ATTENTIONS = ((1, 12, 12, 64, 128, False), (8, 12, 12, 64, 512, False), (1, 32, 8, 128, 2048, True))
"""Batch, heads, heads of keys, size, sequence, causal."""

PROMPT = tuple(range(3, 14))
"""Tokens that decoders continue."""

NEW = 16


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker compiles: a golden model, ``"bert"`` or ``"resnet"`` of check_gpu. ``target``: of TVM."""

    name: str
    precision: str
    target: str
    tiny: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


def compiled(job: Job, folder: Path) -> Path:
    """Compile, and save in ``folder``."""
    import miaotui

    if job.name in ("bert-base", "resnet-50"):
        build, inputs = (check_gpu.bert if job.name == "bert-base" else check_gpu.resnet)(job.tiny)
        module, given = build().eval(), inputs(1)
    else:
        module, given = MODELS[job.name].build(), MODELS[job.name].inputs(batch=1)
    place = folder / str(job).replace(" ", "-")
    with miaotui.compile(
        module,
        given,
        target=job.target,
        precision=job.precision,
        backend="tvm",
        timing=0.0,
        verify=False,
        keep_source=False,
    ) as executable:
        executable.save(place)
    return place


@dataclass(slots=True)
class Builds:
    """Libraries by job, compiled by as many processes as there are cores; each fails for itself."""

    folder: Path
    pool: ProcessPoolExecutor
    jobs: dict[Job, Future[Path]] = field(default_factory=dict)

    def start(self, job: Job) -> None:
        """Have it compiled."""
        self.jobs[job] = self.pool.submit(compiled, job, self.folder)

    def wait(self, job: Job) -> Path:
        """Where it lies, once it is there. Raises: what compiling it raised."""
        if job not in self.jobs:
            self.start(job)
        return self.jobs[job].result()


@contextmanager
def builds() -> Iterator[Builds]:
    """A pool of fresh processes, ended with what they work at."""
    workers = max(1, (os.cpu_count() or 2) - 1)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Builds(Path(folder), pool)
        finally:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()


def target_of(setting: Setting) -> str:
    """The GPU's own architecture; the CPU in a dry run."""
    if setting.device == "cpu":
        return "cpu"
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"cuda:sm_{major}{minor}"


def precisions_of(setting: Setting) -> tuple[str, ...]:
    """A CPU has no code for halves."""
    return ("fp32",) if setting.tiny else ("fp32", "fp16", "bf16")


def kernels_of(target: str, *kernels: Any) -> tuple[Any, str]:
    """Functions by kernel name, and what nvcc made of them, in words."""
    from miaotui.compiler.codegen.tvm import cuda
    from miaotui.compiler.codegen.tvm.cuda_listing import with_dynamic
    from miaotui.compiler.codegen.tvm.target import spelled
    from miaotui.compiler.codegen.tvm.versions import require_tvm
    from miaotui.compiler.options import Target

    tvm, wanted = require_tvm(), Target.parse(target)
    module = tvm.IRModule({kernel.name: kernel.function for kernel in kernels})
    with cuda.ahead_of_time(wanted) as made:
        library = tvm.compile(module, tvm.target.Target(spelled(wanted)))
    listed = with_dynamic(made.kernels, module)
    return library, "; ".join(
        f"{k.registers} registers, {k.dynamic or 0} bytes shared, {k.spilled} spilled" for k in listed
    )


@dataclass(frozen=True, slots=True)
class Kernelled:
    """One kernel and its peer. ``case``: its sizes.

    ``make``: the kernel's arguments on the device, the last its output, torch's function, float64's result.
    """

    case: str
    dtype: str
    operations: float
    kernel: Any
    make: Callable[[], tuple[tuple[Any, ...], Callable[[], object], Any]]


def matmuls(dtype: str) -> Iterator[Kernelled]:
    """All products, plain and with the right factor transposed."""
    from miaotui.compiler.codegen.tvm.kernels import cuda_matmul

    for rows, inputs, outputs in MATMULS:
        for turned in (False, True):

            def make(
                rows: int = rows, inputs: int = inputs, outputs: int = outputs, turned: bool = turned
            ) -> Any:
                import torch

                options: dict[str, Any] = {"device": "cuda", "dtype": getattr(torch, dtype)}
                a, b = torch.randn(rows, inputs, **options), torch.randn(inputs, outputs, **options)
                y, other = torch.empty(rows, outputs, **options), torch.empty(rows, outputs, **options)
                right = b.T.contiguous() if turned else b
                return (a, right, y), lambda: torch.matmul(a, b, out=other), a.double() @ b.double()

            kernel = cuda_matmul.matmul(None, inputs, outputs, dtype, transposed=turned)
            case = f"{dtype} {rows}x{inputs}x{outputs}{' transposed' if turned else ''}"
            yield Kernelled(case, dtype, 2.0 * rows * inputs * outputs, kernel, make)


def attentions(dtype: str) -> Iterator[Kernelled]:
    """All attentions."""
    from miaotui.compiler.codegen.tvm.kernels import cuda_attention

    for batch, heads, kv_heads, size, sequence, causal in ATTENTIONS:

        def make(
            batch: int = batch, heads: int = heads, kv_heads: int = kv_heads, size: int = size,
            sequence: int = sequence, causal: bool = causal,
        ) -> Any:  # fmt: skip
            import torch

            options: dict[str, Any] = {"device": "cuda", "dtype": getattr(torch, dtype)}
            q, k, v, y = (
                torch.randn(batch, n, sequence, size, **options) for n in (heads, kv_heads, kv_heads, heads)
            )
            attend = partial(
                torch.nn.functional.scaled_dot_product_attention,
                is_causal=causal,
                enable_gqa=heads != kv_heads,
            )
            return (q, k, v, y), lambda: attend(q, k, v), attend(q.double(), k.double(), v.double())

        kernel = cuda_attention.attention(
            cuda_attention.Heads(heads, kv_heads, size, size), dtype, causal=causal
        )
        case = f"{dtype} {batch}x{heads}/{kv_heads}x{sequence}x{size}{' causal' if causal else ''}"
        operations = 4.0 * batch * heads * sequence * sequence * size / (2 if causal else 1)
        yield Kernelled(case, dtype, operations, kernel, make)


def kernels(report: Report) -> None:
    """Every shape in both types; in a dry run only compiled."""
    dry = report.setting.tiny
    if dry and shutil.which("nvcc") is None:
        report.add(Row("kernels", "all", TVM, note="no nvcc: not tried"))
        return
    for dtype in BOUND:
        for one in (*matmuls(dtype), *attentions(dtype)):
            try:
                library, made = kernels_of("cuda:sm_90" if dry else target_of(report.setting), one.kernel)
                note = made if dry else f"{made}; {timed(report, one, library[one.kernel.name])}"
            except Exception as error:
                note = reason(error)
            report.add(Row("kernels", one.case, TVM, note=note))
        if dry:
            break


def timed(report: Report, one: Kernelled, call: Callable[..., object]) -> str:
    """Proves the kernel, then times it beside torch's; what was proved. Raises: AssertionError."""
    import torch

    given, peer, want = one.make()
    call(*given)
    torch.cuda.synchronize()
    worst = float((given[-1].double() - want).abs().max() / want.abs().max().clamp(min=1.0))
    proof = f"scaled error {worst:.1e} (bound {BOUND[one.dtype]:g})"
    assert worst <= BOUND[one.dtype], proof

    def many(run: Callable[[], object]) -> Callable[[], None]:
        def sample() -> None:
            for _ in range(LAUNCHES):
                run()
            torch.cuda.synchronize()

        return sample

    case = Case("kernels", one.case, LAUNCHES, one.operations * LAUNCHES, "compute")
    compare(report, case, {TVM: many(lambda: call(*given)), "torch": many(peer)})
    return proof


def golden(report: Report, made: Builds, precision: str) -> None:
    """Every golden model that the backend supports, at two sizes; what it refuses is told."""
    for name, model in MODELS.items():
        table = f"golden models, {precision}"
        try:
            folder = made.wait(Job(name, precision, target_of(report.setting), report.setting.tiny))
            for row in proved(report, table, model, folder, precision):
                report.add(row)
        except Exception as error:
            report.add(Row(table, name, TVM, note=reason(error)))


def proved(report: Report, table: str, model: Golden, folder: Path, precision: str) -> Iterator[Row]:
    """One model against its framework; timed beside eager torch at its first sizes."""
    import miaotui

    module = model.build()
    with miaotui.open(folder) as executable:
        for sizes in (model.sizes, model.other):
            inputs = model.inputs(**sizes)
            found = executable.verify(module, inputs, layers=False)
            proof = f"scaled error {found.error:.1e} (bound {found.tolerance:g})"
            case = f"{model.name} {' '.join(f'{k}={v}' for k, v in sizes.items())}"
            yield Row(table, case, TVM, note=proof if found.ok else f"WRONG: {proof}")
        if executable.manifest.decoding is not None and executable.manifest.decoding.encoder is None:
            yield Row(table, f"{model.name}, text", TVM, note=continued(executable, module, precision))
        if model.framework == "torch":
            beside_torch(report, table, model, executable, module)


def continued(executable: Any, module: Any, precision: str) -> str:
    """Logits of a prompt through the cached entry against torch's; in fp32 the text is the same."""
    import torch
    from miaotui.runtime.compare import difference, tolerance_for

    with torch.no_grad():
        found = module(input_ids=torch.tensor([PROMPT]))
        want = (found if isinstance(found, torch.Tensor) else found[0])[0]
    off = difference("logits", executable.logits(list(PROMPT)), want.numpy(), tolerance_for(precision))
    note = f"logits' scaled error {off.scaled:.1e} (bound {off.tolerance:g})"
    if precision == "fp32":
        ids = list(PROMPT)
        for _ in range(NEW):
            with torch.no_grad():
                found = module(input_ids=torch.tensor([ids]))
            ids.append(int((found if isinstance(found, torch.Tensor) else found[0])[0, -1].argmax()))
        wrote = list(executable.generate(list(PROMPT), max_tokens=NEW).ids)
        same = wrote == ids[len(PROMPT) :]
        note += f"; {NEW} greedy tokens {'equal' if same else 'DIFFER'}"
    return note if off.ok else f"WRONG: {note}"


def beside_torch(report: Report, table: str, model: Golden, executable: Any, module: Any) -> None:
    """Tensors on the device in and out."""
    import torch

    device, arrays = report.setting.device, model.inputs(**model.sizes)
    moved = module.to(device)
    given = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    fed: Any = given if device == "cuda" else arrays

    def waited(run: Callable[[], object]) -> Callable[[], None]:
        def sample() -> None:
            with torch.no_grad():
                run()
            if device == "cuda":
                torch.cuda.synchronize()

        return sample

    short = replace(report.setting, stretch=0.0)
    case = Case(table, model.name, float(next(iter(model.sizes.values()))), 0.0, "compute")
    samples: Samples = {
        TVM: waited(lambda: executable.run(fed)),
        f"{EAGER} fp32": waited(lambda: moved(**given)),
    }
    kept, report.setting = report.setting, short
    try:
        compare(report, case, samples)
    finally:
        report.setting = kept
        module.to("cpu")


def whole(report: Report, made: Builds, name: str) -> None:
    """BERT-base or ResNet-50 of check_gpu with TVM's library beside."""
    import miaotui
    import torch

    setting = report.setting
    precision = "fp32" if setting.tiny else "fp16"
    executable = miaotui.open(made.wait(Job(name, precision, target_of(setting), setting.tiny)))

    def others(fed: Any) -> Mapping[str, Callable[[], object]]:
        def sample() -> None:
            executable.run(fed)
            if setting.device == "cuda":
                torch.cuda.synchronize()

        return {TVM: sample}

    with executable:
        (check_gpu.encoder if name == "bert-base" else check_gpu.cnn)(report, others)


def sections(made: Builds) -> dict[str, tuple[float, Callable[[Report], None]]]:
    """Seconds of each, 570 in all; what is compiled first is looked at first."""
    return {
        "kernels": (70, kernels),
        "bert-base": (70, lambda report: whole(report, made, "bert-base")),
        "resnet-50": (70, lambda report: whole(report, made, "resnet-50")),
        "fp32": (80, lambda report: golden(report, made, "fp32")),
        "fp16": (70, lambda report: golden(report, made, "fp16")),
        "bf16": (70, lambda report: golden(report, made, "bf16")),
        "smollm2": (140, lambda report: check_gpu.language(report, "smollm2", backends=("tvm",))),
    }


def start(made: Builds, setting: Setting, names: list[str]) -> None:
    """Everything that the sections want, in their order."""
    target, precisions = target_of(setting), precisions_of(setting)
    for name in ("bert-base", "resnet-50"):
        if name in names:
            made.start(Job(name, "fp32" if setting.tiny else "fp16", target, setting.tiny))
    for precision in precisions:
        if precision in names:
            for model in MODELS:
                made.start(Job(model, precision, target, setting.tiny))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="what needs no GPU: its structure, no speed")
    parser.add_argument("--only", default="", help="sections, by comma")
    parser.add_argument("--models", default="", help="golden models, by comma; all if empty")
    parser.add_argument("--seconds", type=float, default=580.0, help="bound on everything")
    parser.add_argument("-o", "--output", type=Path, help="file of the tables, without its suffix")
    chosen = parser.parse_args()
    setting = DRY if chosen.dry else Setting()
    if models := {part for part in chosen.models.split(",") if part}:
        for name in set(MODELS) - models:
            del MODELS[name]
    with builds() as made:
        offered = sections(made)
        if chosen.dry:
            offered = {name: part for name, part in offered.items() if name not in ("fp16", "bf16")}
        only = [part for part in chosen.only.split(",") if part]
        if unknown := set(only) - set(offered):
            parser.error(f"no sections {', '.join(sorted(unknown))}; there are {', '.join(offered)}")
        taken = {name: part for name, part in offered.items() if not only or name in only}
        start(made, setting, list(taken))
        path = chosen.output or (None if chosen.dry else shared.RESULTS / "gpu_tvm")
        rows = check_gpu.run(setting, path, taken, chosen.seconds)
    wrong = [row for row in rows if "WRONG" in row.note or "DIFFER" in row.note]
    if wrong:
        raise SystemExit(f"{len(wrong)} rows are wrong: {', '.join(row.case for row in wrong)}")


if __name__ == "__main__":
    main()
