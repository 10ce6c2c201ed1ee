"""Encoder-decoder models: source texts run once through the encoder, whose outputs stay bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...compiler.errors import InternalError
from ...compiler.program import Decoding, TensorSpec
from ...compiler.reference import Array, Arrays
from ..base import Runner


def encoded(
    runner: Runner,
    decoding: Decoding,
    sources: Sequence[Sequence[int]],
    wanted: Sequence[TensorSpec],
) -> Arrays:
    """The inputs ``wanted`` of the decoder that come from ``sources``, one row each; shorter ones are masked.

    Raises: InputError if the encoder does not take them.
    """
    lengths = np.array([len(source) for source in sources])
    specs = {spec.name: spec for spec in runner.inputs}
    masks = [name for name in decoding.encoder_inputs if name in specs]
    [tokens] = [name for name in specs if name not in masks]
    ids = np.zeros((len(sources), lengths.max()), specs[tokens].dtype.numpy())
    for row, source in zip(ids, sources, strict=True):
        row[: len(source)] = source
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    given: Arrays = {tokens: ids, **{name: mask.astype(specs[name].dtype.numpy()) for name in masks}}
    found = {**given, **runner.run(given)}
    return {spec.name: _contiguous(found, spec) for spec in wanted}


def can_pad(runner: Runner, decoding: Decoding) -> bool:
    """Whether sources of different lengths can run together: the encoder takes a mask."""
    return any(spec.name in decoding.encoder_inputs for spec in runner.inputs)


def constants(decoding: Decoding, inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Inputs of the entry with state that stay the same for a whole text."""
    own = {decoding.tokens, decoding.lengths, decoding.select, *(tensor.input for tensor in decoding.state)}
    return [spec for spec in inputs if spec.name not in own]


def _contiguous(found: Arrays, spec: TensorSpec) -> Array:
    if spec.name not in found:
        raise InternalError(f"decoder input {spec.name!r} is no output of the encoder")
    return np.ascontiguousarray(found[spec.name])
