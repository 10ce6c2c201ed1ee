"""Whether a variant can generate, and if not, why."""

from __future__ import annotations

from ...compiler.errors import UnsupportedError
from ...compiler.manifest import IN_PLACE, Manifest, Variant
from ...compiler.options import Target
from ...compiler.program import Decoding

DERIVING = ("derive-cache", "raise-attention")
"""The pass that makes the entry with state, and the one that finds the attention it needs."""


def decoding_of(manifest: Manifest, name: str) -> Decoding:
    """How variant ``name`` keeps state. Raises: UnsupportedError saying why it keeps none."""
    variant, place = manifest.variants[name], f"{manifest.name} ({name})"
    decoding = manifest.decoding
    if decoding is None or decoding.entry not in variant.entries:
        fact = "can't continue text: it has no entry that keeps state between tokens"
        raise UnsupportedError(place, *_reason(manifest, fact))
    if Target.parse(variant.target).device != "cpu" and variant.backend not in ("ort", "tvm"):
        fact = f"can't continue text on {variant.target} with {variant.backend}: its state is in main memory"
        raise UnsupportedError(place, fact, "compile it with --backend ort or tvm")
    return decoding


def is_in_place(variant: Variant) -> bool:
    """Whether past and present of the variant's state may be one buffer."""
    return variant.settings.get(IN_PLACE) == "1"


def _reason(manifest: Manifest, fact: str) -> tuple[str, str]:
    """``fact`` with what is known of its cause, and a way out."""
    decoding, variants = manifest.decoding, manifest.variants
    if decoding is not None:
        able = [name for name, variant in variants.items() if decoding.entry in variant.entries]
        return fact, f"take variant {', '.join(able)}"
    passes = [record for v in variants.values() for record in v.passes if record.name in DERIVING]
    reasons = dict.fromkeys(reason for record in passes for reason in record.declined)
    if reasons:
        return f"{fact}; {'; '.join(reasons)}", "the whole model still runs with `run`"
    return fact, "compile a model that takes token ids and gives logits, at -O1 or more"
