"""SmolLM2-135M, a prompt: miaotui, plain onnxruntime and OpenVINO, interleaved."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import interleave as shared
from miaotui.runtime.stepwise import StepwiseRunner
from products import products_alone

TOKENS = 128
NEXT = "miaotui, cached"


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
        decoding = ours.manifest.decoding
        assert decoding is not None, "no cached program was derived"
        for threads in shared.thread_counts():
            runner = ours.runner(threads=threads)
            prefill = StepwiseRunner(decoding, ours.runner(entry=decoding.entry, threads=threads))
            runs: dict[str, shared.Run] = {
                shared.PLAIN: shared.plain_onnxruntime(path, threads, inputs),
                shared.OURS: partial(runner.run, inputs),
                NEXT: partial(prefill.run_arrays, inputs),
                shared.OPENVINO: shared.openvino(path, threads, inputs),
                shared.PRODUCTS: products_alone(path, threads, TOKENS),
            }
            for name in (shared.PLAIN, shared.OURS, shared.OPENVINO):
                shared.accuracy(name, runs[name], expected)
            last = prefill.run_arrays(inputs)[decoding.logits]
            shared.accuracy(NEXT, partial(list, [last]), [expected[0][:, -1:]])
            rows += shared.race(f"1 x {TOKENS} tokens", threads, runs, seconds=20)
            del runs, runner, prefill
    shared.write(
        "prefill",
        "SmolLM2-135M, prompt of 128 tokens",
        rows,
        "Weights dequantized to float32; accuracy against torch checked before timing. `products alone` runs "
        "the model's weight products back to back and nothing else: no graph over these kernels can be "
        f"faster. `{NEXT}` is the cached program, which fills the cache and computes the logits of the last "
        "token only, what generation needs; all others compute the logits of every token.",
    )


if __name__ == "__main__":
    main()
