"""What sentence-transformers puts behind a transformer, as one module: pooling, dense layers, unit length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...compiler.errors import ModelError
from ...compiler.task import EMBEDDING
from .sentence import Step, activation, modes


def sentence_module(transformer: Any, steps: Sequence[Step]) -> Any:
    """One torch module: ``transformer`` and ``steps`` behind it, over ids and a mask padded on the right.

    Outputs ``sentence_embedding`` float[batch, width], ``last_hidden_state`` float[batch, sequence, hidden].
    Raises: ModelError for dense layers whose weights are missing or do not fit.
    """
    import torch

    pooling, *others = steps
    names = modes(pooling.config)

    class SentenceEncoder(torch.nn.Module):
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__()
            self.config = transformer.config
            self.transformer = transformer
            self.steps = torch.nn.Sequential(*(_layer(step) for step in others))

        def can_generate(self) -> bool:
            return False

        def forward(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
            hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
            mask = attention_mask.to(hidden.dtype).unsqueeze(-1)
            pooled = torch.cat([_POOLINGS[name](hidden, mask) for name in names], dim=-1)
            return {EMBEDDING: self.steps(pooled), "last_hidden_state": hidden}

    return SentenceEncoder().eval()


def _layer(step: Step) -> Any:
    import torch

    class Normalize(torch.nn.Module):
        def forward(self, vector: Any) -> Any:
            return torch.nn.functional.normalize(vector, p=2.0, dim=1)

    if step.kind == "Dense":
        return _dense(step)
    return Normalize() if step.kind == "Normalize" else torch.nn.Identity()


def _cls(hidden: Any, mask: Any) -> Any:
    return hidden[:, 0]


def _max(hidden: Any, mask: Any) -> Any:
    return hidden.masked_fill(mask == 0, float("-inf")).amax(dim=1)


def _mean(hidden: Any, mask: Any) -> Any:
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)


def _mean_sqrt(hidden: Any, mask: Any) -> Any:
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9).sqrt()


def _weighted_mean(hidden: Any, mask: Any) -> Any:
    import torch

    weights = mask * torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype).view(1, -1, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def _last(hidden: Any, mask: Any) -> Any:
    import torch

    last = (mask.sum(dim=1, keepdim=True).to(torch.int64) - 1).clamp(min=0)
    return hidden.gather(1, last.expand(-1, 1, hidden.shape[2])).squeeze(1)


_POOLINGS = {
    "cls": _cls, "max": _max, "mean": _mean, "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean, "lasttoken": _last,
}  # fmt: skip


def _dense(step: Step) -> Any:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = step.folder / "model.safetensors"
    place = f"{step.folder.name}/{path.name}"
    if not path.is_file():
        fix = "save it with sentence-transformers, which writes safetensors"
        raise ModelError(place, "does not exist: weights are read from safetensors only", fix)
    config = step.config
    try:
        linear = torch.nn.Linear(config["in_features"], config["out_features"], config.get("bias", True))
        tensors = {name.removeprefix("linear."): tensor.float() for name, tensor in load_file(path).items()}
        linear.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        fact = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise ModelError(
            place, f"does not fit its configuration: {fact}", "download the model again"
        ) from None
    return torch.nn.Sequential(linear, getattr(torch.nn, activation(config))())
