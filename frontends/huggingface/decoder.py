"""What a model that generates text brings along besides its graph: context length, generation settings."""

from __future__ import annotations

import json
from typing import Any

from ...compiler.program import DimRange, Program
from .folder import GENERATION
from .task import SEQUENCE

_CONTEXT = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_eos_token_id")


def describe_decoder(program: Program, module: Any) -> None:
    """Set the context and add generation settings if ``module`` generates; settings it has stay.

    Rotary positions have no end that an export could see, and shifted tables one that is too large: without
    another bound, the context is that of every sequence.
    """
    if not module.can_generate():
        return
    config = module.config.get_text_config()
    context = next((int(n) for n in (getattr(config, key, None) for key in _CONTEXT) if n), None)
    program.context = context
    if context is not None:
        program.dims |= {
            name: DimRange(min(span.minimum, context), context)
            for name, span in program.dims.items()
            if SEQUENCE in name and span.maximum is None
        }
    if GENERATION not in program.assets:
        ids = {key: getattr(config, key, None) for key in _TOKENS}
        known = {key: value for key, value in ids.items() if value is not None}
        program.assets[GENERATION] = json.dumps(known, indent=2).encode() + b"\n"
