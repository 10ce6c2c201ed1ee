"""One run on a machine with an NVIDIA GPU: placement proved, accuracy and speed against torch and peers.

``python benchmarks/gpu/check_cuda.py`` compiles each case for CUDA in fp32 and fp16, asks the session
where every node ran, compares with torch on the CPU and times the executable interleaved with plain ONNX
Runtime (CUDA provider, plain export) and torch (eager and compiled, in the same precision). Inputs and
outputs of every candidate are host arrays: copies to and from the GPU are in all figures. Needs
``pip install 'miaotui[cuda,torch,huggingface]'``. ``--target cpu`` goes through the same motions without.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import interleave as shared
import miaotui
import numpy as np
from miaotui.compiler.artifact import Artifact
from miaotui.compiler.options import Target
from miaotui.runtime.compare import difference, tolerance_for
from miaotui.runtime.conditions import conditions
from miaotui.runtime.placement import left_to_cpu

RUN = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A module, its example inputs and the dimensions that vary."""

    build: Callable[[], Any]
    inputs: shared.Arrays
    dims: dict[str, Any]


def cases(small: bool) -> dict[str, Case]:
    """MiniLM, BERT-base, ResNet-50 and SmolLM2-135M's shape; ``small`` takes the tests' tiny networks."""
    from support.models import MODELS

    def golden(name: str, **sizes: int) -> Case:
        return Case(MODELS[name].build, MODELS[name].inputs(**sizes), {})

    if small:
        return {name: golden(name) for name in ("bert", "llama", "mobilenet")}
    random = np.random.default_rng(0)
    ids = random.integers(0, 30000, (1, 128))
    image = random.standard_normal((1, 3, 224, 224), dtype=np.float32)
    return {
        "minilm 1x128": golden("minilm", batch=1, sequence=128),
        "bert-base 1x128": Case(lambda: _transformer("BertModel", "BertConfig"), {"input_ids": ids}, {}),
        "resnet50 1x3x224x224": Case(MODELS["resnet50"].build, {"image": image}, {}),
        "smollm2-135m shape 1x128": Case(_smollm2_shape, {"input_ids": ids}, {}),
    }


def _transformer(architecture: str, config: str, **options: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, architecture)(getattr(transformers, config)(**options)).eval()


def _smollm2_shape() -> Any:
    return _transformer(
        "LlamaForCausalLM", "LlamaConfig", vocab_size=49152, hidden_size=576, intermediate_size=1536,
        num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, use_cache=False,
        tie_word_embeddings=True,
    )  # fmt: skip


def torch_runs(module: Any, inputs: shared.Arrays, device: str, half: bool) -> Iterator[tuple[str, RUN]]:
    """Eager and compiled torch on ``device``, host arrays in and out."""
    import torch

    moved = copy.deepcopy(module).to(device)
    moved = moved.half() if half else moved
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}

    def runner(called: Any) -> RUN:
        def run() -> list[Any]:
            with torch.no_grad():
                fed = {n: t.to(device) for n, t in tensors.items()}
                fed = {n: t.half() if half and t.is_floating_point() else t for n, t in fed.items()}
                return [t.cpu().numpy() for t in flat(called(**fed))]

        return run

    yield "torch eager", runner(moved)
    if device == "cuda":
        yield "torch.compile", runner(torch.compile(moved))


def flat(result: Any) -> list[Any]:
    """The tensors of a module's result, in order."""
    import torch

    if isinstance(result, torch.Tensor):
        return [result]
    values = result.values() if hasattr(result, "values") else result
    return [tensor for value in values if value is not None for tensor in flat(value)]


def plain(path: Path, inputs: shared.Arrays, provider: str) -> RUN:
    """A default session on the plain export."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=[provider])
    if session.get_providers()[0] != provider:
        raise SystemExit(f"{provider} could not start: see miaotui doctor")
    return lambda: session.run(None, inputs)


def check(name: str, case: Case, precision: str, target: str, seconds: float) -> list[shared.Row]:
    """Compile, prove and time one case; its rows. Raises: SystemExit on a fallback or too great an error."""
    import torch

    module = case.build().eval()
    tensors = {name: torch.from_numpy(array) for name, array in case.inputs.items()}
    with torch.no_grad():
        expected = [t.numpy() for t in flat(module(**tensors))]
    label = f"{name} {precision}"
    with tempfile.TemporaryDirectory() as folder:
        exe = miaotui.compile(module, case.inputs, target=target, precision=precision, dims=case.dims)
        fallen = left_to_cpu(Artifact(exe.folder))
        print(f"{label}: {len(fallen)} nodes on the CPU" + "".join(f"\n  {problem}" for problem in fallen))
        outputs = list(exe.run(case.inputs).values())
        limit = tolerance_for(precision)
        worst = max(
            difference(name, np.asarray(got), want, limit).scaled
            for got, want in zip(outputs, expected, strict=True)
        )
        print(f"{label}: scaled error against torch on the CPU {worst:.1e} (limit {limit:g})")
        if fallen or not worst <= limit:
            raise SystemExit(f"{label} failed")
        path = Path(folder) / "plain.onnx"
        shared.plain_export(module, case.inputs, {}, path)
        runner = exe.runner()
        arrays = runner.check(case.inputs)
        half = precision == "fp16" and target == "cuda"
        runs: dict[str, RUN] = {
            shared.PLAIN: plain(path, case.inputs, f"{target.upper()}ExecutionProvider"),
            shared.OURS: lambda: runner.run_arrays(arrays),
            **dict(torch_runs(module, case.inputs, target, half)),
        }
        rows = shared.race(label, 1, runs, seconds=seconds)
        exe.close()
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="the tests' tiny networks")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--precision", choices=("fp32", "fp16"), action="append")
    parser.add_argument("--seconds", type=float, default=12.0, help="time for each race")
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    chosen = parser.parse_args()
    shared.RESULTS.mkdir(exist_ok=True)
    precisions = chosen.precision or (["fp32", "fp16"] if chosen.target == "cuda" else ["fp32"])
    rows = [
        row
        for name, case in cases(chosen.small).items()
        if chosen.only in name
        for precision in precisions
        for row in check(name, case, precision, chosen.target, chosen.seconds)
    ]
    if not chosen.no_write:
        gpu = conditions(Target.parse(chosen.target)).gpu or "no GPU"
        notes = (
            f"{gpu}. Host arrays in and out. Every node of miaotui's executables ran on the GPU (asked of "
            "the session), scaled error against torch on the CPU at most 1e-4 (fp32) and 1e-2 (fp16). Plain "
            "onnxruntime runs the plain fp32 export."
        )
        shared.write(f"gpu_{chosen.target}", "CUDA check", rows, notes)


if __name__ == "__main__":
    main()
