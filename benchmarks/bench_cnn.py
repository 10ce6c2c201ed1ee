"""ResNet-50 and MobileNetV2, 1 x 3 x 224 x 224: miaotui, plain onnxruntime and OpenVINO, interleaved."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import interleave as shared
import numpy as np


def main() -> None:
    import torch
    from support.models import MODELS

    rows = []
    image = np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32)
    for name in ("resnet50", "mobilenet"):
        module = MODELS[name].build().eval()
        with torch.no_grad():
            expected = [module(torch.from_numpy(image)).numpy()]
        example = {"image": np.concatenate([image, image])}
        with tempfile.TemporaryDirectory() as folder, shared.compiled(module, example, {}) as ours:
            path = Path(folder) / f"{name}.onnx"
            shared.plain_export(module, example, {"image": {0: torch.export.Dim.AUTO}}, path)
            inputs = {"image": image}
            for threads in shared.thread_counts():
                runner = ours.runner(threads=threads)
                runs: dict[str, shared.Run] = {
                    shared.PLAIN: shared.plain_onnxruntime(path, threads, inputs),
                    shared.OURS: partial(runner.run, inputs),
                    shared.OPENVINO: shared.openvino(path, threads, inputs),
                }
                for engine, run in runs.items():
                    shared.accuracy(engine, run, expected)
                rows += shared.race(f"{name} 1 x 3 x 224 x 224", threads, runs)
    shared.write(
        "cnn",
        "Convolutional networks, one image",
        rows,
        "ResNet-50 and MobileNetV2 shapes with random weights; accuracy against torch checked before timing.",
    )


if __name__ == "__main__":
    main()
