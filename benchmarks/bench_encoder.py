"""MiniLM, 1 x 128 tokens: miaotui, plain onnxruntime and OpenVINO on the plain export, interleaved."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import interleave as shared
from kernels import kernel_times
from products import products_alone

TOKENS = 128


def main() -> None:
    import torch
    from support.models import MODELS

    golden = MODELS["minilm"]
    module = golden.build().eval()
    inputs = golden.inputs(batch=1, sequence=TOKENS)
    inputs["attention_mask"][:] = 1
    with torch.no_grad():
        result = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    expected = [result.last_hidden_state.numpy(), result.pooler_output.numpy()]

    rows = []
    with tempfile.TemporaryDirectory() as folder, shared.compiled(module, golden.inputs(), {}) as ours:
        path = Path(folder) / "minilm.onnx"
        auto = torch.export.Dim.AUTO
        shared.plain_export(module, golden.inputs(), {name: {0: auto, 1: auto} for name in inputs}, path)
        for threads in shared.thread_counts():
            runner = ours.runner(threads=threads)
            runs: dict[str, shared.Run] = {
                shared.PLAIN: shared.plain_onnxruntime(path, threads, inputs),
                shared.OURS: partial(runner.run, inputs),
                shared.OPENVINO: shared.openvino(path, threads, inputs),
                shared.PRODUCTS: products_alone(path, threads, TOKENS),
            }
            for name in (shared.PLAIN, shared.OURS, shared.OPENVINO):
                shared.accuracy(name, runs[name], expected)
            rows += shared.race(f"1 x {TOKENS} tokens", threads, runs)
        kernels = kernel_times(ours, inputs)
    shared.write(
        "encoder",
        "MiniLM sentence encoder (6 layers, hidden 384), 128 tokens",
        rows,
        "All with a full attention mask; accuracy against torch checked before timing (scaled error at most "
        "1e-4). `products alone` runs the model's weight products back to back and nothing else: no graph "
        "over these kernels can be faster. Kernels of the compiled graph, 1 thread, ms: "
        + ", ".join(f"{name} {ms:.2f}" for name, ms in kernels.items() if ms >= 0.1)
        + f"; all {sum(kernels.values()):.2f}.",
    )


if __name__ == "__main__":
    main()
