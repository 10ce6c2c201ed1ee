"""What one-shot pruning costs real weights: SmolLM2's perplexity and KL, the cosine of MiniLM's embeddings.

Every method is our own pass's; the model stays one torch module whose weights are swapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from corpus import documentation, windows
from miaotui.passes.moments import Moment
from miaotui.passes.sparsity.pruned import Pruner, Pruning

Array = np.ndarray[Any, Any]

SHARES = (0.1, 0.2, 0.3, 0.5)
METHODS = ("magnitude", "wanda", "sparsegpt")
PATTERNS = ("unstructured", "2:4", "block")
SENTENCES, LONGEST = 128, 64


@dataclass(frozen=True, slots=True)
class Cost:
    """``figures`` of a model pruned so; by name of the figure."""

    model: str
    pattern: str
    sparsity: float
    method: str
    figures: dict[str, float]


def prunings() -> Iterator[Pruning]:
    """Every pattern and share, by every method."""
    for pattern in PATTERNS:
        for share in SHARES if pattern != "2:4" else (0.5,):
            for method in METHODS:
                yield Pruning(pattern, share, method)


def linears(module: Any) -> dict[str, Any]:
    """The linear layers besides the output layer, by name."""
    import torch

    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    }


@dataclass(slots=True)
class Inputs:
    """What layers read, and its second moments; layers that read the same tensor share an entry."""

    reads: dict[str, str]
    moments: dict[str, Moment]


@contextmanager
def measured(layers: dict[str, Any]) -> Iterator[Inputs]:
    """The layers' inputs while the body runs the module; complete at its end."""
    sums: dict[str, Any] = {}
    rows: dict[str, int] = {}
    last: list[Any] = [None, ""]
    found = Inputs({}, {})

    def hook(name: str) -> Callable[[Any, Any], None]:
        def add(layer: Any, inputs: Any) -> None:
            if inputs[0] is not last[0]:
                last[:] = inputs[0], name
                x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
                sums[name] = x.T @ x if name not in sums else sums[name].add_(x.T @ x)
                rows[name] = rows.get(name, 0) + len(x)
            found.reads[name] = last[1]

        return add

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    yield found
    for each in hooks:
        each.remove()
    for name, total in sums.items():
        found.moments[name] = Moment((total / rows[name]).numpy(), rows[name])


def costs(
    model: str, module: Any, calibrate: Callable[[], None], judge: Callable[[], dict[str, float]]
) -> Iterator[Cost]:
    """The module judged as it is, then pruned in every way; it ends as it began."""
    import torch

    layers = linears(module)
    with torch.no_grad():
        with measured(layers) as inputs:
            calibrate()
        yield Cost(model, "dense", 0.0, "", judge())
        weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        for pruning in prunings():
            pruner = Pruner(inputs.moments)
            for name, layer in layers.items():
                tensor = ir.Tensor(weights[name].numpy(), name=name)
                made = pruner.pruned(tensor, False, pruning, (inputs.reads[name],)).numpy()
                layer.weight.copy_(torch.from_numpy(np.array(made)))
            yield Cost(model, pruning.pattern, pruning.sparsity, pruning.method, judge())
        for name, layer in layers.items():
            layer.weight.copy_(weights[name])


def smollm2(tokens: int, length: int) -> Iterator[Cost]:
    """SmolLM2-135M-Instruct, its GGUF weights dequantized; judged on ``tokens`` tokens in windows."""
    import tempfile

    import torch
    from support.models import MODELS, smollm2_gguf
    from transformers import AutoTokenizer

    module = MODELS["smollm2"].build()
    path = smollm2_gguf()
    with tempfile.TemporaryDirectory() as folder:
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
        file, texts = Path(folder, "tokenizer.json"), documentation()
        calibration = windows(texts[0], file, 4096 // length, length)
        evaluation = windows(texts[1], file, tokens // length, length)
    dense: list[Any] = []

    def logits(ids: Array) -> Any:
        return torch.log_softmax(module(torch.from_numpy(ids[None])).logits[0, :-1].float(), -1)

    def judge() -> dict[str, float]:
        loss = kl = 0.0
        first = not dense
        for index, ids in enumerate(evaluation):
            found = logits(ids)
            loss -= float(found.gather(1, torch.from_numpy(ids[1:, None])).mean())
            if first:
                dense.append(found.half())
            old = dense[index].float()
            kl += float((old.exp() * (old - found)).sum(-1).mean())
        count = len(evaluation)
        return {"perplexity": float(np.exp(loss / count)), "mean KL": 0.0 if first else kl / count}

    def calibrate() -> None:
        for ids in calibration:
            module.model(torch.from_numpy(ids[None]))

    yield from costs("SmolLM2-135M", module, calibrate, judge)


def minilm() -> Iterator[Cost]:
    """all-MiniLM-L6-v2: cosine of the mean embedding of sentences with the dense model's."""
    import torch
    from support.models import MODELS, minilm_folder
    from tokenizers import Tokenizer

    module = MODELS["minilm"].build().eval()
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    calibration, evaluation = (
        [torch.tensor([tokenizer.encode(s).ids]) for s in sentences(text)] for text in documentation()
    )
    dense: list[Any] = []

    def embeddings() -> Any:
        return torch.stack([module(ids).last_hidden_state[0].mean(0) for ids in evaluation])

    def judge() -> dict[str, float]:
        found = embeddings()
        if not dense:
            dense.append(found)
        cosine = torch.nn.functional.cosine_similarity(found, dense[0])
        return {"mean cosine": float(cosine.mean()), "least cosine": float(cosine.min())}

    def calibrate() -> None:
        for ids in calibration:
            module(ids)

    yield from costs("MiniLM-L6", module, calibrate, judge)


def sentences(text: str) -> list[str]:
    """``SENTENCES`` sentences of some length, spread over the text."""
    found = [s for p in text.split("\n\n") for s in " ".join(p.split()).split(". ") if 60 < len(s) < 300]
    return [found[index * len(found) // SENTENCES] for index in range(SENTENCES)]
