"""int8 on the CPU: our forms under ONNX Runtime and native, beside onnxruntime's own quantization tools.

MiniLM on real sentences, BERT-base's shape, ResNet-50 and MobileNet: time interleaved, error, cosine.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import interleave as shared
import miaotui
import numpy as np
from bench_encoder import bert, dynamic_int8, inputs_of, minilm

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
    """Cosine with the source's embeddings, mean and least, and the greatest scaled error: two cells."""
    found = [embedding(run(sample)) for sample in samples]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(found, wanted, strict=True)]
    error = max(np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in zip(found, wanted, strict=True))
    return f"{np.mean(cosines):.5f}, {np.min(cosines):.5f} | {error:.3f}"


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


@dataclass(frozen=True, slots=True)
class Case:
    """A model, what its error is measured on, what it is calibrated on, and what is timed."""

    name: str
    build: Callable[[], Any]
    samples: Sequence[Sample]
    calibration: Sequence[Sample]
    timed: Sample
    dims: Any

    def folder(self, work: Path) -> Path:
        return work / self.name.split(",")[0].lower()


def prepare(case: Case, work: Path) -> list[str]:
    """Every form that takes the model, made in ``work``; how near each is to torch."""
    import torch

    folder = case.folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    module = case.build()
    shared.plain_export(module, case.calibration[0], case.dims, path)
    with torch.no_grad():
        results = [
            module(**{key: torch.from_numpy(array) for key, array in sample.items()})
            for sample in case.samples
        ]
    firsts = [getattr(item, "last_hidden_state", item).numpy() for item in results]
    wanted = [embedding([first]) for first in firsts]
    arrays = {key: np.stack([sample[key] for sample in case.calibration]) for key in case.calibration[0]}
    data = folder / "calibration.npz"
    np.savez(data, **arrays)  # type: ignore[arg-type]
    miaotui.compile(path, output=folder / "fp32", verify=False, backend="ort", timing=0.0).close()
    for label, options in FORMS.items():
        settings: dict[str, Any] = {"precision": "int8", "timing": 0.0, "verify": False, "calib": str(data)}
        settings |= {"backend": "ort", "keep_source": False} | options
        try:
            miaotui.compile(path, output=folder / label.replace(" ", "-"), **settings).close()
        except miaotui.CompileError as error:  # a form that the model does not take is told, not hidden
            print(f"  {label}: {str(error).splitlines()[0]}", file=sys.stderr)
    dynamic_int8(path)
    static_int8(path, case.calibration)
    with ExitStack() as stack:
        return [f"{label} | {nearness(run, wanted, case.samples)}" for label, run in runs(case, work, stack)]


def runs(case: Case, work: Path, stack: ExitStack) -> Iterator[tuple[str, Callable[[Sample], Any]]]:
    """What runs each form on one thread, of those that were made."""
    folder = case.folder(work)
    made = {shared.OURS: folder / "fp32"} | {label: folder / label.replace(" ", "-") for label in FORMS}
    for label, place in made.items():
        if (place / "manifest.json").is_file():
            yield label, stack.enter_context(miaotui.open(place)).runner(threads=1).run
    for label, suffix in (("onnxruntime dynamic", ".int8.onnx"), ("onnxruntime static", ".static.onnx")):
        yield label, session(folder / f"model{suffix}")


def raced(case: Case, work: Path) -> list[shared.Row]:
    """Rows of all forms and of plain onnxruntime, interleaved."""
    with ExitStack() as stack:
        plain: dict[str, shared.Run] = {
            shared.PLAIN: partial(session(case.folder(work) / "model.onnx"), case.timed)
        }
        plain |= {label: partial(run, case.timed) for label, run in runs(case, work, stack)}
        return shared.race(case.name, 1, plain, seconds=30.0)


def session(path: Path) -> Callable[[Sample], Any]:
    """A session of one thread."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    opened = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return partial(opened.run, None)


def cases() -> list[Case]:
    """MiniLM, BERT-base's shape, two CNNs."""
    import torch
    from support.models import MODELS

    auto = torch.export.Dim.AUTO
    text, free = encoded(SENTENCES + 40), {key: {0: auto, 1: auto} for key in ("input_ids", "attention_mask")}
    full = inputs_of(1, TOKENS)
    random = [{key: array[:1] for key, array in inputs_of(index + 1, TOKENS).items()} for index in range(8)]
    pictures = images(24, 224)
    return [
        Case(f"MiniLM, 1 x {TOKENS}", minilm, text[40:], windows(text[:40]), full, free),
        Case(f"BERT-base, 1 x {TOKENS}", bert, random[:4], random[4:], full, free),
        *(
            Case(
                f"{name}, 1 x 3 x 224 x 224", MODELS[kind].build, pictures[8:], pictures[:8], pictures[0], {}
            )
            for name, kind in (("ResNet-50", "resnet50"), ("MobileNetV2", "mobilenet"))
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names that contain one of these; all by default")
    parser.add_argument("--part", choices=("accuracy", "timing", "all"), default="all")
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/miaotui-bench-int8"), help="kept between runs"
    )
    options = parser.parse_args()
    work, words = options.work, options.models or [""]
    chosen = [case for case in cases() if any(word.lower() in case.name.lower() for word in words)]
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "accuracy.json"
    told: dict[str, list[str]] = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    for case in chosen:
        if options.part != "timing":
            told[case.name] = prepare(case, work)
            kept.write_text(json.dumps(told), "utf-8")
            print("\n".join([case.name, *told[case.name]]), flush=True)
    if options.part == "accuracy":
        return
    rows = [row for case in chosen for row in raced(case, work)]
    notes = ["| case | form | cosine with torch, least | scaled error |", "|---|---|---|---|"]
    notes += [f"| {case.name} | {note} |" for case in chosen for note in told.get(case.name, ())]
    shared.write(
        "int8",
        "8-bit weights and activations on the CPU, one thread",
        rows,
        f"Cosine and error against torch on {SENTENCES} sentences of Python's help topics (MiniLM), on "
        "random tokens (BERT-base) and on smooth random images (CNNs, random weights).\n\n"
        + "\n".join(notes),
    )


if __name__ == "__main__":
    main()
