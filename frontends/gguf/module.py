"""The transformers module of a GGUF file: without weights for export, with them as the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...compiler.errors import ModelError, Problem, UnsupportedError, require
from ...compiler.reference import Array
from ..huggingface.skeleton import Skeleton, first_line, load, quiet_transformers, skeleton
from .architecture import ARCHITECTURES, IGNORED, Architecture, architecture_of
from .config import config_of
from .header import AGAIN, Header
from .weights import Source


@dataclass(frozen=True, slots=True)
class Described:
    """What a header says in transformers' terms: class, configuration, and a source for every parameter."""

    header: Header
    name: str
    kind: Any
    config: Any
    sources: Mapping[str, Source]

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return int(self.config.vocab_size)

    def skeleton(self) -> Skeleton:
        """The module without its weights. Raises: ModelError for tensors that are missing or misshapen."""
        shapes = {name: (source.info.shape, ir.DataType.FLOAT) for name, source in self.sources.items()}
        empty = skeleton(self.kind, self.config, shapes, self.header.path.name, spell=self._spell)
        if empty is None:
            fact = f"tensors of {self.name} are no parameters as they are"
            raise UnsupportedError(self.header.path.name, fact, "give the Hugging Face folder")
        self._scale_rotation(empty.module)
        return empty

    def module(self) -> Any:
        """The module with the file's weights, read as ``reader`` does."""
        import torch

        read = self.reader()
        state = {name: torch.from_numpy(read(name)) for name in self.sources}
        with quiet_transformers(require("transformers", extra="huggingface")):
            module = load(self.kind, self.config, self.header.path.name, state)
        self._scale_rotation(module)
        return module

    def reader(self) -> Callable[[str], Array]:
        """A function from a parameter's name to float32 values, as transformers and gguf decode them.

        They are independent of our decoders; without the gguf package, ours stand in.
        """
        try:
            from gguf import GGUFReader, dequantize
        except ImportError:
            return lambda name: np.array(self.sources[name].numpy())
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

        known = ARCHITECTURES[self.name]
        alike = "llama" if known.interleaved else "gemma2" if known.norm_shift else self.name
        processor = TENSOR_PROCESSORS.get(alike, TensorProcessor)(config=self.config.to_dict())
        tensors = {tensor.name: tensor for tensor in GGUFReader(self.header.path).tensors}

        def read(name: str) -> Array:
            tensor = tensors[self.sources[name].info.name]
            values = dequantize(tensor.data, tensor.tensor_type)
            return np.array(processor.process(weights=values, name=tensor.name).weights, np.float32)

        return read

    def _spell(self, name: str) -> str:
        source = self.sources.get(name)
        if source is not None:
            return source.info.name
        architecture = architecture_of(self.header)[1]
        names = architecture.names(int(self.config.num_hidden_layers))
        return next((old for old, new in names.items() if new == name), name)

    def _scale_rotation(self, module: Any) -> None:
        """Divide rotary frequencies by the file's factors, as Llama 3.1 and later have them."""
        import torch

        info = self.header.tensors.get("rope_freqs.weight")
        if info is None:
            return
        factors = torch.from_numpy(Source(self.header.path, info).numpy())
        for name, buffer in module.named_buffers():
            if name.endswith("inv_freq"):
                if buffer.shape != factors.shape:
                    fact = f"has {factors.numel()} factors for {buffer.numel()} frequencies"
                    raise ModelError(f"{self.header.path.name}: tensor 'rope_freqs.weight'", fact, AGAIN)
                buffer /= factors


def describe(header: Header) -> Described:
    """The header in transformers' terms.

    Raises: ModelError for settings or tensors that contradict each other, UnsupportedError for an
    architecture, a rotary scaling or tensors that have no translation.
    """
    transformers = require("transformers", extra="huggingface")
    require("torch", extra="torch")
    name, architecture = architecture_of(header)
    fields = config_of(header, name, architecture)
    sources = _sources(header, name, architecture, fields)
    try:
        config = transformers.CONFIG_MAPPING[fields.pop("model_type")](**fields)
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except Exception as error:  # a wrong field raises whatever its check raises
        raise ModelError(header.path.name, f"settings are refused: {first_line(error)}", AGAIN) from error
    return Described(header, name, kind, config, sources)


def _sources(
    header: Header, name: str, architecture: Architecture, fields: Mapping[str, Any]
) -> dict[str, Source]:
    names = architecture.names(fields["num_hidden_layers"])
    heads = {"attn_q": fields["num_attention_heads"], "attn_k": fields["num_key_value_heads"]}
    sources, unknown = {}, []
    for info in header.tensors.values():
        if info.name in names:
            stem = info.name.split(".")[-2]
            rows = None
            if architecture.interleaved and stem in heads:
                rows = _halves(info.shape[0], heads[stem], header, info.name)
            shift = architecture.norm_shift if info.name.endswith("norm.weight") else 0.0
            sources[names[info.name]] = Source(header.path, info, rows, shift)
        elif not info.name.endswith(IGNORED) and not any(part in info.name for part in IGNORED):
            fact = f"has no place in {name}"
            unknown.append(Problem(f"{header.path.name}: tensor {info.name!r}", fact, "give the folder"))
    if unknown:
        raise UnsupportedError.of(unknown)
    return sources


def _halves(rows: int, heads: int, header: Header, name: str) -> Any:
    """For each row of a head in halves, its row where pairs that are rotated lie side by side."""
    if rows % (2 * heads):
        fact = f"has {rows} rows for {heads} heads"
        raise ModelError(f"{header.path.name}: tensor {name!r}", fact, AGAIN)
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
