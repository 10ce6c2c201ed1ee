"""SmolLM2-135M, logits of every token of a prompt: miaotui, plain onnxruntime and OpenVINO, interleaved."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import interleave as shared
from products import products_alone

TOKENS = 128


def main() -> None:
    import torch
    from support.models import MODELS

    golden = MODELS["smollm2"]
    module = golden.build().eval()
    inputs = golden.inputs(batch=1, sequence=TOKENS)
    with torch.no_grad():
        expected = [module(torch.from_numpy(inputs["input_ids"])).logits.numpy()]

    rows = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "smollm2.onnx"
        auto = torch.export.Dim.AUTO
        shared.plain_export(module, golden.inputs(batch=2), {"input_ids": {0: auto, 1: auto}}, path)
        del module
        ours = stack.enter_context(shared.compiled(path, golden.inputs(batch=2), {}))  # one export serves all
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
            rows += shared.race(f"1 x {TOKENS} tokens", threads, runs, seconds=20)
            del runs, runner
    shared.write(
        "prefill",
        "SmolLM2-135M, prompt of 128 tokens, logits of every token",
        rows,
        "Weights dequantized to float32; accuracy against torch checked before timing. `products alone` runs "
        "the model's weight products back to back and nothing else: no graph over these kernels can be "
        "faster.",
    )


if __name__ == "__main__":
    main()
