"""MiniLM and BERT-base, 1 x 128 tokens: our backends, onnxruntime and OpenVINO on the plain export.

Interleaved; in float32, and with 8-bit weights and activations against onnxruntime's dynamic quantization.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import interleave as shared
import numpy as np
from kernels import kernel_times
from products import products_alone

TOKENS = 128
NATIVE, DYNAMIC, INT8 = "miaotui native", "onnxruntime dynamic int8", "miaotui native int8"


def minilm() -> Any:
    """The package's sentence encoder: 6 layers, hidden 384."""
    from support.models import MODELS

    return MODELS["minilm"].build().eval()


def bert() -> Any:
    """BERT-base's shape with random weights: 12 layers, hidden 768."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(attn_implementation="sdpa")).eval()


def inputs_of(batch: int, tokens: int) -> shared.Arrays:
    """Random tokens and a full mask."""
    ids = np.random.default_rng(0).integers(1000, 30000, (batch, tokens))
    return {"input_ids": ids, "attention_mask": np.ones((batch, tokens), np.int64)}


def dynamic_int8(path: Path) -> Path:
    """onnxruntime's dynamic quantization of the plain export, per channel."""
    from onnxruntime.quantization import quantize_dynamic

    quantized = path.with_suffix(".int8.onnx")
    # of an Attention it makes an operator that onnxruntime then refuses
    kinds, types = ["MatMul", "Gemm"], {"DefaultTensorType": 1}
    quantize_dynamic(path, quantized, op_types_to_quantize=kinds, per_channel=True, extra_options=types)
    return quantized


def measure(name: str, build: Callable[[], Any]) -> tuple[list[shared.Row], list[str], dict[str, float]]:
    """Rows of one model at 1 and 2 threads; how near the 8-bit forms are; kernel times of our ort form."""
    import torch

    module, inputs = build(), inputs_of(1, TOKENS)
    with torch.no_grad():
        result = module(**{key: torch.from_numpy(array) for key, array in inputs.items()})
    expected = [result.last_hidden_state.numpy(), result.pooler_output.numpy()]
    rows: list[shared.Row] = []
    notes: list[str] = []
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.onnx"
        auto, example = torch.export.Dim.AUTO, inputs_of(2, 11)
        shared.plain_export(module, example, {key: {0: auto, 1: auto} for key in inputs}, path)
        enter = stack.enter_context
        ort = enter(shared.compiled(module, example, {}, backend="ort"))
        native = enter(shared.compiled(module, example, {}, backend="native"))
        settings = {"backend": "native", "precision": "int8", "verify": True, "timing": 0.0}  # calibrated
        int8 = enter(shared.compiled(module, example, {}, **settings))
        quantized = dynamic_int8(path)
        for threads in shared.thread_counts():
            runs: dict[str, shared.Run] = {
                shared.PLAIN: shared.plain_onnxruntime(path, threads, inputs),
                shared.OURS: partial(ort.runner(threads=threads).run, inputs),
                NATIVE: partial(native.runner(threads=threads).run, inputs),
                shared.OPENVINO: shared.openvino(path, threads, inputs),
                shared.PRODUCTS: products_alone(path, threads, TOKENS),
                DYNAMIC: shared.plain_onnxruntime(quantized, threads, inputs),
                INT8: partial(int8.runner(threads=threads).run, inputs),
            }
            for label in (shared.PLAIN, shared.OURS, NATIVE, shared.OPENVINO):
                shared.accuracy(label, runs[label], expected)
            if not notes:
                notes = [f"{label}: {nearness(runs[label], expected[0])}" for label in (DYNAMIC, INT8)]
            rows += shared.race(f"{name}, 1 x {TOKENS}", threads, runs)
        return rows, notes, kernel_times(ort, inputs)


def nearness(run: shared.Run, expected: Any) -> str:
    """Scaled error of the hidden states, and the cosine of the mean embedding with torch's."""
    outputs = run()
    hidden = np.asarray(next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs[0])
    error = np.abs(hidden - expected).max() / np.abs(expected).max()
    a, b = hidden.mean(1).ravel(), expected.mean(1).ravel()
    return f"scaled error {error:.4f}, cosine {a @ b / np.linalg.norm(a) / np.linalg.norm(b):.5f}"


def main() -> None:
    rows, notes = [], []
    for name, build in (("MiniLM", minilm), ("BERT-base", bert)):
        found, near, kernels = measure(name, build)
        rows += found
        spent = ", ".join(f"{kernel} {ms:.2f}" for kernel, ms in kernels.items() if ms >= 0.1)
        notes.append(f"{name} with 8 bits: {'; '.join(near)}. Kernels of our ort form, ms: {spent}.")
    shared.write(
        "encoder",
        "Encoders of 128 tokens: MiniLM (6 layers, hidden 384), BERT-base (12 layers, hidden 768)",
        rows,
        "All with a full attention mask; accuracy of the float32 forms against torch checked before timing "
        "(scaled error at most 1e-4). `products alone` runs the model's weight products back to back under "
        "onnxruntime and nothing else. " + " ".join(notes),
    )


if __name__ == "__main__":
    main()
