"""The manifest of an executable folder: contents, origin, proof; JSON with its own hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from .errors import ArtifactError
from .jsonable import from_json, to_json
from .program import Call, Decoding, DimRange, TensorSpec

SCHEMA = 1
"""Version of this file's layout; a reader takes exactly its own."""

FORMAT = "miaotui executable"

IN_PLACE = "state.in_place"
"""Setting of a variant, ``"1"`` if past and present of its state may be bound to the same memory."""

ROW_BY_ROW = "state.row_by_row"
"""Setting of a variant, ``"1"`` if a run takes several tokens of one row, or one token of several rows; of
several rows several tokens only if they fill the capacity, and so are prompts of empty rows."""
"""Value of the manifest's ``format`` field, by which a folder is known to be ours."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Signature of one callable of the executable."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did: rewrites made, candidates declined and why; ``reverted`` says why it was undone."""

    name: str
    changed: int = 0
    hits: tuple[str, ...] = ()
    declined: tuple[str, ...] = ()
    seconds: float = 0.0
    reverted: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of an entry that one backend runs: an entry of its own, by the name it has in ``file``.

    ``file``: relative to the folder. ``signature``: what it reads of the entry's inputs and of what earlier
    segments gave, and what it gives. ``settings``: as a variant's.
    """

    backend: str
    entry: str
    file: str
    signature: Entry
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Variant:
    """One built form of the program: the source as imported, or optimized for a target by a backend.

    ``entries``: model file of each entry, relative to the folder. ``settings``: what the backend's
    runner is to set. ``operators``: how many nodes of each operator, subgraphs included. ``segments``: where
    several backends take turns, the stretches of each entry in order; its file is then the first one's.
    """

    role: Literal["source", "optimized"]
    target: str
    backend: str
    entries: Mapping[str, str]
    settings: Mapping[str, str] = field(default_factory=dict)
    operators: Mapping[str, int] = field(default_factory=dict)
    passes: tuple[PassRecord, ...] = ()
    segments: Mapping[str, tuple[Segment, ...]] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Model files of all entries and segments, each once."""
        parts = (part.file for segments in self.segments.values() for part in segments)
        return list(dict.fromkeys((*self.entries.values(), *parts)))

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(self.operators.values())

    @property
    def weights(self) -> str | None:
        """A weight file of its own, relative to the folder; None if it reads the folder's."""
        file = self.settings.get("weights")
        return None if file is None else str(PurePosixPath(next(iter(self.entries.values()))).with_name(file))


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and SHA-256 of a file of the folder."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was proved when the folder was written: the error of each output against ``reference``.

    ``metric``: ``scaled`` error, or ``kl``, the mean KL divergence of logits in nats a position.
    ``faithful``: where weights are pruned or factored, the same against the program with those weights,
    otherwise not optimized, within what the precision allows without pruning.
    """

    reference: str
    ok: bool
    tolerance: float
    outputs: Mapping[str, float]
    variant: str = ""
    metric: Literal["scaled", "kl"] = "scaled"
    faithful: Certificate | None = None

    @property
    def error(self) -> float:
        """The greatest error of any output."""
        return max(self.outputs.values(), default=0.0)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything known about an executable folder.

    ``default``: the variant that runs unless another is named. ``layers``: source layer path → name of
    the value it computes. ``options``, ``timings``: as the driver gave them, any JSON. ``plan``: what a
    budget chose, the options of each pass by weight. ``environment``: package → version. ``files``: every
    file but the manifest; the writer fills it. ``decoding``: how the entry with state is driven, None for a
    model that keeps none. ``source_entries``: the source's signatures where they are others: executables may
    take and give 16 bits.
    """

    name: str
    entries: Mapping[str, Entry]
    variants: Mapping[str, Variant]
    default: str
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    call: Call | None = None
    decoding: Decoding | None = None
    layers: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    certificate: Certificate | None = None
    timings: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    source_entries: Mapping[str, Entry] = field(default_factory=dict)

    def signature(self, entry: str = "main", role: str = "optimized") -> Entry:
        """Of an entry, of the executable or of its ``source``."""
        own = self.entries[entry]
        return self.source_entries.get(entry, own) if role == "source" else own

    def dumps(self) -> str:
        """The manifest as text, its own hash last."""
        data = signed({"format": FORMAT, "schema": SCHEMA, **to_json(self)})
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def loads(cls, text: str, place: str) -> Manifest:
        """The manifest in ``text``; ``place`` begins every message.

        Raises: ArtifactError if it is not ours, of another schema, edited, or inconsistent.
        """
        data = parse_signed(text, place, FORMAT, SCHEMA, "the manifest of an executable folder")
        manifest = from_json(cls, data, place)
        manifest._check(place)
        return manifest

    def _check(self, place: str) -> None:
        if self.default not in self.variants:
            raise ArtifactError(place, f"its default variant {self.default!r} does not exist")
        if self.decoding is not None and self.decoding.entry not in self.entries:
            raise ArtifactError(place, f"its decoding entry {self.decoding.entry!r} does not exist")
        for name in self.files:
            if not is_inside(name):
                raise ArtifactError(place, f"file {name!r} lies outside the folder", "don't open this folder")
        for name, variant in self.variants.items():
            for entry in variant.entries:
                if entry not in self.entries:
                    raise ArtifactError(place, f"variant {name!r} has an unknown entry {entry!r}")
            for file in variant.files:
                if file not in self.files:
                    raise ArtifactError(place, f"variant {name!r}: {file!r} is not among its files")
            if unknown := variant.segments.keys() - variant.entries.keys():
                raise ArtifactError(place, f"variant {name!r} has segments of unknown {', '.join(unknown)}")
            if variant.weights is not None and variant.weights not in self.files:
                raise ArtifactError(place, f"variant {name!r}: {variant.weights!r} is not among its files")


def is_inside(name: str) -> bool:
    """Whether ``name`` is a plain relative path that stays in its folder."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and "\0" not in name
    )


def signed(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with its own hash last."""
    return {**data, "sha256": _hash(data)}


def parse_signed(text: str, place: str, form: str, schema: int, kind: str) -> dict[str, Any]:
    """The fields in a signed JSON ``text``, less format, schema and hash; ``kind``: what it should be.

    Raises: ArtifactError if it is not of that format and schema, edited or damaged.
    """
    data = _parse(text, place, kind)
    if data.pop("format", None) != form:
        raise ArtifactError(place, f"is not {kind}")
    if (found := data.get("schema")) != schema:
        fact = f"has schema {found!r}, this version reads {schema}"
        raise ArtifactError(place, fact, "upgrade miaotui, or compile the model again")
    if data.pop("sha256", None) != _hash({"format": form, **data}):
        fact = "does not match its own hash: it was edited or damaged"
        raise ArtifactError(place, fact, "compile the model again")
    del data["schema"]
    return data


def _parse(text: str, place: str, kind: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(place, f"is no JSON: {error}", "compile the model again") from None
    if not isinstance(data, dict):
        raise ArtifactError(place, f"is not {kind}")
    return data


def _hash(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
