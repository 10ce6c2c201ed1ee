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

    Rotary positions have no end that an export could see: without another bound, the context is sequences'.
    """
    if not module.can_generate():
        return
    config = module.config.get_text_config()
    program.context = next((int(n) for n in (getattr(config, key, None) for key in _CONTEXT) if n), None)
    span = program.dims.get(SEQUENCE)
    if program.context and span is not None and span.maximum is None and not module.config.is_encoder_decoder:
        program.dims[SEQUENCE] = DimRange(min(span.minimum, program.context), program.context)
    if GENERATION not in program.assets:
        ids = {key: getattr(config, key, None) for key in _TOKENS}
        known = {key: value for key, value in ids.items() if value is not None}
        program.assets[GENERATION] = json.dumps(known, indent=2).encode() + b"\n"
