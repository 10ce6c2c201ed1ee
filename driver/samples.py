"""Calibration data: inputs that activations are measured on, from a file, the sample text or the proof."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..compiler.errors import InputError
from ..compiler.ir.examples import example_inputs, index_limit
from ..compiler.program import DimRange, Program
from ..compiler.reference import Array, Arrays
from .proof import typical_inputs
from .sample_archive import archived_samples
from .sample_text import TEXT, TOKENIZER, TOKENS, token_ids

WINDOW = 128
"""Tokens of a window of text, where the model holds as many."""

MADE, ELEMENTS = 32, 1 << 21
"""Made-up samples where there is no data, and about how many numbers they hold at most."""

MOST = 64
"""Samples that are used at most, evenly spread over those given: 8,192 tokens of text."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs of the main entry, one run each. ``origin``: where they are from, in words."""

    inputs: tuple[Arrays, ...]
    origin: str

    @property
    def digest(self) -> str:
        """Hash of the contents."""
        content = hashlib.sha256()
        for arrays in self.inputs:
            for name in sorted(arrays):
                array = np.ascontiguousarray(arrays[name])
                content.update(f"{name} {array.dtype} {array.shape}\n".encode())
                content.update(str(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
        return content.hexdigest()


def samples_of(program: Program, calib: str | None, proof: Sequence[Arrays] = (), seed: int = 0) -> Samples:
    """What ``calib`` holds; without it the whole sample text for language models, else the proof's inputs.

    Where those are made up from ``seed``, more of their kind are: weights that are fitted to what they are
    proved on would look better than they are. ``calib``: an ``.npz`` with an array for each input, several
    samples along its batch or one more leading axis; or a text file, which the program's tokenizer cuts into
    windows.
    Raises: InputError with everything that is wrong with the file.
    """
    if calib is None:
        ids = token_ids(program, TEXT)
        if len(ids) and TOKENS in (spec.name for spec in program.inputs()):
            return Samples(tuple(_windows(program, ids)), "the sample text")
        if not proof:
            return Samples((), "nothing")
        if not _equal(typical_inputs(program, seed), proof[0]):
            return Samples(tuple(proof), "the proof's inputs")
        size = sum(array.size for array in proof[0].values())
        count = max(1, min(MADE, ELEMENTS // max(1, size)))
        made = (typical_inputs(program, seed + 1000 + index) for index in range(count))
        return Samples((*proof, *made), "made-up inputs")
    path = Path(calib)
    if not path.is_file():
        raise InputError(f"--calib {calib}", "is no file", "give an .npz of inputs or a text file")
    found = archived_samples(program, path) if path.suffix.lower() == ".npz" else _text(program, path)
    kept = [found[index * len(found) // min(MOST, len(found))] for index in range(min(MOST, len(found)))]
    told = f"{len(kept)} of {len(found)} samples" if len(kept) < len(found) else f"{len(kept)} samples"
    return Samples(tuple(kept), f"{told} of {path.name}")


def _equal(some: Arrays, others: Arrays) -> bool:
    return some.keys() == others.keys() and all(np.array_equal(a, others[n]) for n, a in some.items())


def _text(program: Program, path: Path) -> list[Arrays]:
    place = f"--calib {path.name}"
    if TOKENIZER not in program.assets or TOKENS not in (spec.name for spec in program.inputs()):
        fact = "is taken for a text, but the model came without a tokenizer for its input_ids"
        raise InputError(place, fact, "give an .npz of inputs, or the model's folder with its tokenizer.json")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        fact = f"is no UTF-8 text (byte {error.start})"
        raise InputError(place, fact, "convert it, or give an .npz of inputs") from None
    ids = token_ids(program, text)
    length = _length(program)
    if len(ids) < length:
        fact = f"has {len(ids)} tokens, less than one window of {length}"
        raise InputError(place, fact, "give a longer text: a few thousand words")
    limit = index_limit(program, TOKENS)
    if limit is not None and ids.max() >= limit:
        fact = f"gives token {int(ids.max())}, the model's table has {limit} rows"
        raise InputError(place, fact, "give the tokenizer that belongs to the model")
    return list(_windows(program, ids))


def _length(program: Program) -> int:
    """Tokens of a window: what the model takes, ``WINDOW`` where it takes any number."""
    spec = next(spec for spec in program.inputs() if spec.name == TOKENS)
    dim = spec.shape[-1] if spec.shape else None
    if isinstance(dim, int):
        return dim
    span = program.dims.get(dim or "", DimRange())
    most = min(x for x in (WINDOW, span.maximum, program.context) if x is not None)
    return max(span.minimum, most)


def _windows(program: Program, ids: Array) -> Iterator[Arrays]:
    """Windows of ``ids``, the last one moved back to be whole; rows of a fixed batch are windows too."""
    spec = next(spec for spec in program.inputs() if spec.name == TOKENS)
    length, shape = _length(program), spec.shape or ("batch", "sequence")
    limit = index_limit(program, TOKENS)
    if limit is not None and ids.max() >= limit:
        return
    names = {
        str(d) for s in program.inputs() for d in s.shape or () if isinstance(d, str) and d.isidentifier()
    }
    sizes = {name: 0 for name in names if "past" in name}
    for dim, size in zip(shape, (1, length), strict=False):
        if isinstance(dim, str) and dim.isidentifier():
            sizes[dim] = max(size, program.dims.get(dim, DimRange()).minimum)
    made = example_inputs(program, sizes=sizes)
    rows, length = made[TOKENS].shape
    count = max(1, math.ceil(len(ids) / length))
    starts = [max(0, min(index * length, len(ids) - length)) for index in range(count)]
    windows = [ids[(start + np.arange(length)) % len(ids)] for start in starts]
    for first in range(0, count, rows):
        chosen = [windows[(first + row) % count] for row in range(rows)]
        yield {**made, TOKENS: np.stack(chosen).astype(made[TOKENS].dtype)}
