"""What ``inspect`` looks at: an executable folder's manifest, or a model as imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..compiler.manifest import Certificate, Entry, Manifest, Variant
    from ..compiler.parallel.plan import Plan
    from ..compiler.program import DimRange, Program, TensorSpec


class Described(Protocol):
    """A folder or a model: its graph and its summary, whose keys are the same for both."""

    def graph(self) -> ir.Graph:
        """The graph of the chosen variant and entry; its weights stay on disk."""
        ...

    def layers(self) -> Mapping[str, str]:
        """Source layer path → name of the value it computes."""
        ...

    def summary(self) -> dict[str, Any]:
        """Everything ``inspect`` tells, ready for JSON."""
        ...


def describe(source: str, *, variant: str | None, entry: str, check: bool, rank: str = "0.0") -> Described:
    """Open a folder or import a model. Raises: CompileError if it can't be read; OptionError."""
    from ..compiler.artifact import is_executable

    if is_executable(Path(source)):
        return Folder(Path(source), variant, entry, check, rank)
    if check or variant is not None:
        from ..compiler.errors import OptionError

        flag = "--check" if check else "--variant"
        raise OptionError(
            flag, f"{source} is no executable folder", f"compile {source} first, or drop {flag}"
        )
    from .. import load

    return Model(load(source), entry)


class Folder:
    """An executable folder; ``rank``: stage and shard whose graph it is where it is partitioned."""

    def __init__(self, folder: Path, variant: str | None, entry: str, check: bool, rank: str) -> None:
        from ..compiler import artifact

        self.checked = len(artifact.check(folder).files) if check else None
        with artifact.Artifact(folder) as opened:
            self.folder, self.manifest = opened.folder, opened.manifest
            self.variant, record = opened.variant(variant)
        self.plan = _plan(self.folder, record)
        self.file = _entry(record.entries, entry) if self.plan is None else _part(self.plan, entry, rank)
        if self.plan is not None:
            self.file = f"variants/{self.variant}/{self.file}"

    def graph(self) -> ir.Graph:
        """The graph of the chosen variant and entry."""
        import onnx_ir as ir

        model: ir.Model = ir.load(self.folder / self.file)
        return model.graph

    def layers(self) -> Mapping[str, str]:
        """As the manifest has them."""
        return self.manifest.layers

    def summary(self) -> dict[str, Any]:
        """Manifest facts, sizes in bytes, operators of the source and of the chosen variant."""
        from ..compiler.jsonable import to_json
        from ..compiler.parallel.summary import described

        manifest, proof = self.manifest, self.manifest.certificate
        plain = next((v for v in manifest.variants.values() if v.role == "source"), None)
        chosen = manifest.variants[self.variant]
        return {
            "schema": 1,
            "kind": "executable",
            "name": manifest.name,
            "created": manifest.created,
            "source": dict(manifest.source),
            **_signatures(manifest.entries, manifest.dims),
            "decoding": to_json(manifest.decoding),
            "default": manifest.default,
            "variants": {
                name: {
                    "role": v.role,
                    "target": v.target,
                    "backend": v.backend,
                    "nodes": v.nodes,
                    "settings": dict(v.settings),
                    "bytes": self._size(f"variants/{name}/"),
                }
                for name, v in manifest.variants.items()
            },
            "sizes": _sizes(manifest),
            "partition": None if self.plan is None else described(self.plan),
            "ops": {"before": dict((plain or chosen).operators), "after": dict(chosen.operators)},
            "passes": [
                {"name": p.name, "changed": p.changed, "reverted": p.reverted or None} for p in chosen.passes
            ],
            "certificate": None if proof is None else _proof(proof),
            "environment": dict(manifest.environment),
            "options": dict(manifest.options),
            "checked": self.checked,
        }

    def _size(self, prefix: str) -> int:
        return sum(record.size for name, record in self.manifest.files.items() if name.startswith(prefix))


class Model:
    """A model as imported, before any pass."""

    def __init__(self, program: Program, entry: str) -> None:
        self.program = program
        self.model: ir.Model = _entry(program.entries, entry)

    def graph(self) -> ir.Graph:
        """The imported graph."""
        return self.model.graph

    def layers(self) -> Mapping[str, str]:
        """As the frontend found them."""
        return self.program.layers

    def summary(self) -> dict[str, Any]:
        """The folder's keys; what only a folder has is empty."""
        from ..compiler.manifest import Entry

        program = self.program
        entries = {name: Entry(program.inputs(name), program.outputs(name)) for name in program.entries}
        counts = Counter(_spelled(n) for model in program.entries.values() for n in model.graph.all_nodes())
        ops = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        return {
            "schema": 1,
            "kind": "model",
            "name": self.graph().name or "",
            "created": "",
            "source": dict(program.source),
            **_signatures(entries, program.dims),
            "decoding": None,
            "default": None,
            "variants": {},
            "sizes": {},
            "partition": None,
            "ops": {"before": ops, "after": ops},
            "passes": [],
            "certificate": None,
            "environment": {},
            "options": {},
            "checked": None,
        }


def _proof(proof: Certificate) -> dict[str, Any]:
    return {
        "ok": proof.ok,
        "reference": proof.reference,
        "error": proof.error,
        "metric": proof.metric,
        "tolerance": proof.tolerance,
        "outputs": dict(proof.outputs),
        "faithful": None if proof.faithful is None else _proof(proof.faithful),
    }


def _entry(entries: Mapping[str, Any], name: str) -> Any:
    if name not in entries:
        from ..compiler.errors import OptionError

        raise OptionError("--entry", f"no entry {name!r}", f"it has {', '.join(entries)}")
    return entries[name]


def _plan(folder: Path, record: Variant) -> Plan | None:
    """The plan of a partitioned variant. Raises: ArtifactError if it does not fit its files."""
    from ..compiler.parallel.check_plan import read_plan
    from ..runtime.session import is_partitioned

    return (
        read_plan((folder / next(iter(record.entries.values()))).parent) if is_partitioned(record) else None
    )


def _part(plan: Plan, entry: str, rank: str) -> str:
    """The model file of a rank's part, by its own name. Raises: OptionError."""
    from ..compiler.errors import OptionError
    from ..compiler.parallel.plan import Part

    shares = {f"{share.stage}.{share.shard}": share for share in plan.shares}
    name = rank if "." in rank else f"{rank}.0"
    if name not in shares:
        raise OptionError("--rank", f"no rank {rank!r}", f"it has {', '.join(shares)}")
    steps = (step for own in shares[name].steps.values() for step in own)
    file: str = _entry({part.entry: part.file for part in steps if isinstance(part, Part)}, entry)
    return file


def _signatures(entries: Mapping[str, Entry], dims: Mapping[str, DimRange]) -> dict[str, Any]:
    return {
        "entries": {
            name: {"inputs": [_spec(s) for s in e.inputs], "outputs": [_spec(s) for s in e.outputs]}
            for name, e in entries.items()
        },
        "dims": {name: str(span) for name, span in dims.items()},
    }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    from ..compiler.program import dtype_name

    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "dtype": dtype_name(spec.dtype), "shape": shape, "text": str(spec)}


def _sizes(manifest: Manifest) -> dict[str, int]:
    """Bytes by what they are for: ``weights``, ``variants``, ``golden``, ``other``."""
    sizes: dict[str, int] = {}
    for name, record in manifest.files.items():
        part = name.split("/")[0] if "/" in name else "other"
        sizes[part] = sizes.get(part, 0) + record.size
    return sizes


def _spelled(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
