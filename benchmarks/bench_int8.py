"""int8 on the CPU: our forms under ONNX Runtime and native, beside onnxruntime's own quantization tools.

MiniLM on real sentences, BERT-base's shape, ResNet-50 and MobileNet: time interleaved, error, cosine.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import interleave as shared
import numpy as np
from bench_encoder import bert, dynamic_int8, inputs_of

SENTENCES, TOKENS = 200, 128
Array: TypeAlias = "np.ndarray[Any, Any]"
Sample: TypeAlias = dict[str, Array]

STATIC = "quantize-activations{{mode=static,range={}}}"
FORMS: dict[str, dict[str, Any]] = {
    "dynamic by row": {"enable": ("quantize-activations{mode=dynamic}",)},
    "dynamic by tensor": {"enable": ("quantize-activations{mode=dynamic,per=tensor}",)},
    "static minmax": {"enable": (STATIC.format("minmax"),)},
    "static percentile": {"enable": (STATIC.format("percentile"),)},
    "static entropy": {"enable": (STATIC.format("entropy"),)},
    "weights only": {"disable": ("quantize-activations",)},
    "native": {"backend": "native"},
}
"""Options beyond int8, by name."""


def sentences(count: int) -> list[str]:
    """Sentences of Python's own help topics, the same every time."""
    from pydoc_data.topics import topics

    text = " ".join(re.sub(r"\s+", " ", topic) for topic in topics.values())
    found = [part.strip() for part in re.split(r"(?<=[.!?])\s+", text)]
    prose = [s for s in found if 30 < len(s) < 400 and sum(c.isalpha() or c == " " for c in s) > 0.9 * len(s)]
    chosen = np.random.default_rng(0).permutation(len(prose))[:count]
    return [prose[index] for index in chosen]


def encoded(count: int) -> list[Sample]:
    """The sentences as MiniLM's tokens, one a sample."""
    from support.models import minilm_folder
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), local_files_only=True)
    wanted = ("input_ids", "attention_mask")
    made = [tokenizer(text, return_tensors="np") for text in sentences(count)]
    return [{name: np.asarray(item[name], np.int64) for name in wanted} for item in made]


def windows(samples: Sequence[Sample], length: int = 64) -> list[Sample]:
    """The samples' tokens one after the other, cut into samples of one length."""
    ids = np.concatenate([sample["input_ids"][0] for sample in samples])
    cut = ids[: len(ids) // length * length].reshape(-1, 1, length)
    return [{"input_ids": part, "attention_mask": np.ones_like(part)} for part in cut]


def images(count: int, size: int) -> list[Sample]:
    """Smooth random images: neighbouring pixels are alike, as in photographs."""
    draw = np.random.default_rng(1)
    coarse = draw.random((count, 3, size // 8, size // 8), dtype=np.float32)
    return [{"image": np.kron(image, np.ones((8, 8), np.float32))[None]} for image in coarse]


def embedding(outputs: Any) -> Array:
    """The first output as one vector; tokens are averaged."""
    first = np.asarray(next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs[0])
    return np.asarray((first.mean(1) if first.ndim == 3 else first).ravel())


def nearness(run: Callable[[Sample], Any], wanted: Sequence[Array], samples: Sequence[Sample]) -> str:
    """Cosine with the source's embeddings, and the greatest scaled error."""
    found = [embedding(run(sample)) for sample in samples]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(found, wanted, strict=True)]
    error = max(np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in zip(found, wanted, strict=True))
    return f"cosine {np.mean(cosines):.5f} (least {np.min(cosines):.5f}), scaled error {error:.3f}"


def static_int8(path: Path, samples: Sequence[Sample]) -> Path:
    """onnxruntime's static quantization of the plain export: QDQ, per channel, min-max."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> Sample | None:
            return next(self.left, None)

    quantized = path.with_suffix(".static.onnx")
    types = {"DefaultTensorType": 1}
    quantize_static(
        path, quantized, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, extra_options=types
    )
    return quantized


def measure(
    name: str, module: Any, samples: Sequence[Sample], calibration: Sequence[Sample], timed: Sample, dims: Any
) -> tuple[list[shared.Row], list[str]]:
    """Rows and accuracy of one model in every form that takes it."""
    import torch

    rows: list[shared.Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "model.onnx"
        shared.plain_export(module, calibration[0], dims, path)
        with torch.no_grad():
            results = [
                module(**{key: torch.from_numpy(array) for key, array in sample.items()})
                for sample in samples
            ]
        firsts = [getattr(item, "last_hidden_state", item).numpy() for item in results]
        wanted = [embedding([first]) for first in firsts]
        data = folder / "calibration.npz"
        arrays = {key: np.stack([sample[key] for sample in calibration]) for key in calibration[0]}
        np.savez(data, **arrays)  # type: ignore[arg-type]
        runs: dict[str, Callable[[Sample], Any]] = {}
        fp32 = stack.enter_context(shared.compiled(module, calibration[0], {}))
        runs[shared.OURS] = fp32.runner(threads=1).run
        for label, options in FORMS.items():
            settings = {"precision": "int8", "timing": 0.0, "budget": 10.0, "calib": str(data), **options}
            settings["verify"] = True  # so that activations are measured
            try:
                made = stack.enter_context(shared.compiled(module, calibration[0], {}, **settings))
            except Exception as error:  # a form that the model does not take is told, not hidden
                print(f"  {label}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            runs[label] = made.runner(threads=1).run
        for label, quantize in (("onnxruntime dynamic", dynamic_int8), ("onnxruntime static", None)):
            quantized = quantize(path) if quantize is not None else static_int8(path, calibration)
            runs[label] = session(quantized)
        notes = [f"{label}: {nearness(run, wanted, samples)}" for label, run in runs.items()]
        plain: dict[str, shared.Run] = {shared.PLAIN: partial(session(path), timed)}
        plain |= {label: partial(run, timed) for label, run in runs.items()}
        rows += shared.race(name, 1, plain)
    return rows, [f"{name}: {note}." for note in notes]


def session(path: Path) -> Callable[[Sample], Any]:
    """A session of one thread."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    opened = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return partial(opened.run, None)


def main() -> None:
    import torch
    from support.models import MODELS

    auto = torch.export.Dim.AUTO
    names = ("input_ids", "attention_mask")
    text, free = encoded(SENTENCES + 40), {key: {0: auto, 1: auto} for key in names}
    full = inputs_of(1, TOKENS)
    random = [{key: array[:1] for key, array in inputs_of(index + 1, TOKENS).items()} for index in range(8)]
    rows: list[shared.Row] = []
    notes: list[str] = []
    minilm = MODELS["minilm"].build().eval()
    cases: list[tuple[Any, ...]] = [
        (f"MiniLM, 1 x {TOKENS}", minilm, text[40:], windows(text[:40]), full, free),
        (f"BERT-base, 1 x {TOKENS}", bert(), random[:4], random[4:], full, free),
    ]
    for kind in ("resnet50", "mobilenet"):
        pictures = images(24, 224)
        module = MODELS[kind].build().eval()
        cases.append((f"{kind}, 1 x 3 x 224 x 224", module, pictures[8:], pictures[:8], pictures[0], {}))
    chosen = sys.argv[1:]
    for case in cases:
        if chosen and not any(word in case[0] for word in chosen):
            continue
        found, told = measure(*case)
        rows, notes = rows + found, notes + told
        print("\n".join(told), flush=True)
    shared.write(
        "int8",
        "8-bit weights and activations on the CPU, one thread",
        rows,
        f"Cosine and error against torch on {SENTENCES} sentences of Python's help topics (MiniLM), on "
        "random tokens (BERT-base) and on smooth random images (CNNs, random weights). " + " ".join(notes),
    )


if __name__ == "__main__":
    main()
