"""Write the stored kernel table from the onnxruntime that is imported (a GPU build, see stub_cuda.py).

``python write_kernels.py [FILE]``. A line ``op`` gives the versions an operator's schema has; the lines
below it are kernels: provider, first and last version, and for inputs (``0``, ``2+`` variadic) and
outputs (``o0``) the dtypes that the kernel takes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

PROVIDERS = {"CPUExecutionProvider": "CPU", "CUDAExecutionProvider": "CUDA"}
DOMAINS = ("", "ai.onnx.ml", "com.microsoft")
TABLE = Path(__file__).parents[2] / "compiler" / "codegen" / "onnxruntime" / "kernels.tsv"
Constraints = tuple[tuple[str, frozenset[str]], ...]


def main(path: Path) -> None:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    schemas: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for schema in state.get_all_operator_schema():
        schemas[schema.domain, schema.name][schema.since_version] = schema
    kernels: dict[tuple[str, str], set[tuple[str, int, int, Constraints]]] = defaultdict(set)
    for kernel in state.get_all_opkernel_def():
        key = (kernel.domain, kernel.op_name)
        if kernel.provider in PROVIDERS and kernel.domain in DOMAINS and schemas[key]:
            first, last = kernel.version_range
            since = max((v for v in schemas[key] if v <= first), default=min(schemas[key]))
            constraints = _constraints(schemas[key][since], kernel.type_constraints)
            kernels[key].add((PROVIDERS[kernel.provider], first, last, constraints))
    lines = [f"# ONNX Runtime {onnxruntime.__version__}; written by benchmarks/gpu/write_kernels.py"]
    for (domain, name), defined in sorted(kernels.items()):
        lines.append("\t".join(("op", domain, name, ",".join(map(str, sorted(schemas[domain, name]))))))
        for provider, first, last, constraints in sorted(
            _merge(defined), key=lambda k: (*k[:3], _text(k[3]))
        ):
            end = "" if last == 2**31 - 1 else last
            lines.append("\t".join((provider, f"{first}-{end}", *_text(constraints))))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)} lines, {path.stat().st_size} bytes")


def _constraints(schema: Any, types: dict[str, list[str]]) -> Constraints:
    """A kernel names its types by type parameter or by formal parameter; resolve both to positions."""
    places = [(str(i), p) for i, p in enumerate(schema.inputs)] + [
        (f"o{i}", p) for i, p in enumerate(schema.outputs)
    ]
    found = []
    for key, allowed in types.items():
        at = [
            place + ("+" if "Variadic" in str(p.option) else "")
            for place, p in places
            if key in (p.typeStr, p.name)
        ]
        if at:
            found.append((" ".join(at), frozenset(_short(t) for t in allowed)))
    return tuple(sorted(found))


def _short(dtype: str) -> str:
    return dtype.replace("tensor(", "").replace(")", "") if dtype.startswith("tensor(") else dtype


def _merge(defined: set[tuple[str, int, int, Constraints]]) -> set[tuple[str, int, int, Constraints]]:
    """Join kernels that differ in the dtypes of one constraint only (most are registered dtype by dtype)."""
    merged = set(defined)
    while True:
        pair = next(
            ((a, b, i) for a in merged for b in merged if a != b for i in _differs_only_at(a, b)),
            None,
        )
        if pair is None:
            return merged
        a, b, i = pair
        joined = list(a[3])
        joined[i] = (a[3][i][0], a[3][i][1] | b[3][i][1])
        merged -= {a, b}
        merged.add((*a[:3], tuple(joined)))


def _differs_only_at(a: tuple[str, int, int, Constraints], b: tuple[str, int, int, Constraints]) -> list[int]:
    if a[:3] != b[:3] or [k for k, _ in a[3]] != [k for k, _ in b[3]]:
        return []
    differing = [i for i, (x, y) in enumerate(zip(a[3], b[3], strict=True)) if x != y]
    return differing if len(differing) == 1 else []


def _text(constraints: Constraints) -> list[str]:
    return [f"{places}={' '.join(sorted(types))}" for places, types in constraints]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE)
