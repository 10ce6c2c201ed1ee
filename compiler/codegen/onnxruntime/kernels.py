"""Which operators ONNX Runtime's CPU and CUDA providers have kernels for, known without a GPU.

``kernels.tsv`` is ONNX Runtime's own kernel registry, written by ``benchmarks/gpu/write_kernels.py`` from
the GPU build whose version its first line names. A build installed beside us is not asked: reading the
registry of the GPU wheel loads every provider in it and crashes the process where TensorRT is missing.
What a real session did is read by ``placement.actual``, and outranks this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...program import OPSET

TABLE = Path(__file__).with_name("kernels.tsv")
_PROVIDERS = {"CPUExecutionProvider": "CPU", "CUDAExecutionProvider": "CUDA"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One registration: schema versions ``first``..``last`` (None: open), dtypes by position.

    ``types``: input index (``0``, ``2+`` for a variadic tail) or output index (``o0``) → dtypes.
    """

    first: int
    last: int | None
    types: tuple[tuple[str, frozenset[str]], ...]

    def has_version(self, since: int) -> bool:
        """ONNX Runtime's rule: an open range ends at the next version of the operator's schema."""
        return self.first == since or (self.last is not None and self.first <= since <= self.last)


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator's schema versions and its kernels by provider."""

    versions: tuple[int, ...]
    kernels: dict[str, tuple[Kernel, ...]]


def find(provider: str, node: ir.Node, opset: int | None = None, *, exact: bool = False) -> str | None:
    """None if ``provider`` has a kernel for ``node``, else the reason why not.

    ``provider``: ``"CUDAExecutionProvider"`` or ``"CUDA"``. ``opset``: version of the node's domain, by
    default what its graph imports. Unless ``exact``, a kernel counts too if it is for an older opset that
    means the same (see ``emission_opset``). Dtypes that are not known don't count against a kernel.
    """
    short = _PROVIDERS.get(provider, provider)
    opset = opset_of(node) if opset is None else opset
    reason = _find(short, node, opset)
    if reason is not None and not exact and _domain(node.domain) == "":
        older = (o for o in range(opset - 1, _OLDEST - 1, -1) if _find(short, node, o) is None)
        if any(not _changed(node, o, opset) for o in older):
            return None
    return reason


def _find(provider: str, node: ir.Node, opset: int) -> str | None:
    name = f"{node.domain}.{node.op_type}-{opset}" if node.domain else f"{node.op_type}-{opset}"
    rejected = [_rejected(kernel, node) for kernel in _kernels(provider, node, opset)]
    if not rejected:
        return _expanded(provider, node, opset, f"{provider} has no kernel for {name}")
    if all(rejected):
        why = f"{provider} has no kernel for {name} with {min(rejected, key=len)}"
        return _expanded(provider, node, opset, why)
    return _declined(node) if provider == "CUDA" else None


def _kernels(provider: str, node: ir.Node, opset: int) -> list[Kernel]:
    operator = table().get((_domain(node.domain), node.op_type))
    if operator is None:
        return []
    since = max((v for v in operator.versions if v <= opset), default=0)
    return [kernel for kernel in operator.kernels.get(provider, ()) if kernel.has_version(since)]


def _expanded(provider: str, node: ir.Node, opset: int, why: str) -> str | None:
    """An operator that no provider has but ONNX defines by a function is expanded: judge its body."""
    import onnx

    if any(not _rejected(kernel, node) for p in _PROVIDERS.values() for kernel in _kernels(p, node, opset)):
        return why
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opset, _domain(node.domain))
    except onnx.defs.SchemaError:
        return why
    if schema.has_context_dependent_function:
        return None
    if not schema.has_function:
        return why
    inner = (
        find(provider, ir.node(n.op_type, [], domain=n.domain), opset) for n in schema.function_body.node
    )
    return next((f"{why}, and inside it {reason}" for reason in inner if reason), None)


def opset_of(node: ir.Node) -> int:
    """The version of the node's domain that applies to it: its own, its graph's import, or the pinned one."""
    if node.version is not None:
        return node.version
    if node.graph is not None and node.domain in node.graph.opset_imports:
        return node.graph.opset_imports[node.domain]
    return OPSET if _domain(node.domain) == "" else 1


_OLDEST = 21


def emission_opset(provider: str, model: ir.Model) -> int:
    """The newest default opset at which ``provider`` has every operator of ``model``, else the model's own.

    CUDA lacks MaxPool, Elu, Selu, InstanceNormalization, ThresholdedRelu, EyeLike and Dropout of opset 22,
    which differ from the older ones in accepting bfloat16 only: writing such a model as opset 21 keeps it
    on the GPU. A node may be written as an older version that has the same inputs and its attributes.
    """
    own = model.opset_imports.get("", OPSET)
    nodes = [n for g in model.graphs() for n in g if _domain(n.domain) == "" and n.op_type != "Constant"]
    lacking = {opset: _lacking(provider, nodes, opset) for opset in range(own, _OLDEST - 1, -1)}
    meant = [o for o in lacking if not any(_changed(n, o, own) for n in nodes)]
    return min(meant, key=lambda o: (lacking[o], own - o), default=own)


def _lacking(provider: str, nodes: list[ir.Node], opset: int) -> int:
    return sum(find(provider, node, opset, exact=True) is not None for node in nodes)


def _changed(node: ir.Node, old: int, new: int) -> bool:
    """Whether ``node`` would mean something else as of opset ``old``."""
    import onnx

    if old == new:
        return False
    try:
        before, after = (onnx.defs.get_schema(node.op_type, version, "") for version in (old, new))
    except onnx.defs.SchemaError:
        return True
    if [i.name for i in before.inputs] != [i.name for i in after.inputs]:
        return True
    defaults, newer = ({k: str(a.default_value) for k, a in s.attributes.items()} for s in (before, after))
    return any(defaults.get(k) != v for k, v in newer.items() if k in defaults or k in node.attributes)


@cache
def table() -> dict[tuple[str, str], Operator]:
    """The stored registry by (domain, operator)."""
    operators: dict[tuple[str, str], Operator] = {}
    kernels: dict[str, tuple[Kernel, ...]] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]:
        kind, *fields = line.split("\t")
        if kind == "op":
            kernels = {}
            operators[fields[0], fields[1]] = Operator(tuple(map(int, fields[2].split(","))), kernels)
        else:
            first, _, last = fields[0].partition("-")
            types = tuple(
                (place, frozenset(allowed.split()))
                for places, _, allowed in (field.partition("=") for field in fields[1:])
                for place in places.split()
            )
            kernels[kind] = (*kernels.get(kind, ()), Kernel(int(first), int(last) if last else None, types))
    return operators


def version() -> str:
    """The ONNX Runtime version the stored table was read from: ``"1.31.1"``."""
    with TABLE.open(encoding="utf-8") as lines:
        return next(lines).split()[3].rstrip(";")


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _rejected(kernel: Kernel, node: ir.Node) -> str:
    """The dtypes the kernel does not take, as ``float64 input 0``; empty if it takes all."""
    wrong = []
    for place, allowed in kernel.types:
        values = node.outputs if place.startswith("o") else node.inputs
        kind = "output" if place.startswith("o") else "input"
        first = int(place.strip("o+"))
        last = len(values) if place.endswith("+") else first + 1
        for index in range(first, min(last, len(values))):
            dtype = _dtype(values[index])
            if dtype is not None and dtype not in allowed:
                wrong.append(f"{_numpy_name(dtype)} {kind} {index}")
    return ", ".join(wrong)


def _dtype(value: ir.Value | None) -> str | None:
    """The type as the registry spells it: ``float``, ``int64``, ``seq(tensor(float))``."""
    if value is None or value.dtype is None or value.dtype == ir.DataType.UNDEFINED:
        return None
    name = value.dtype.name.lower()
    wrap = {ir.SequenceType: "seq(tensor({}))", ir.OptionalType: "optional(tensor({}))"}
    return wrap.get(type(value.type), "{}").format(name)  # type: ignore[arg-type]


def _numpy_name(dtype: str) -> str:
    return {"float": "float32", "double": "float64"}.get(dtype, dtype)


def _declined(node: ir.Node) -> str | None:
    """What the CUDA provider leaves to the CPU although it has a kernel (found by trial)."""
    attributes = {name: attr.value for name, attr in node.attributes.items() if not attr.is_ref()}
    match node.op_type:
        case "ArgMax" | "ArgMin" if attributes.get("select_last_index", 0):
            return f"CUDA's {node.op_type} does not offer select_last_index"
        case "ConvTranspose":
            pads = list(attributes.get("pads", ()))
            if str(attributes.get("auto_pad", "NOTSET")).startswith("SAME"):
                return "CUDA's ConvTranspose does not offer auto_pad"
            if pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
                return "CUDA's ConvTranspose does not offer asymmetric pads"
        case "LSTM" | "GRU" | "RNN":
            return _declined_recurrent(node, attributes)
    return None


_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _declined_recurrent(node: ir.Node, attributes: dict[str, Any]) -> str | None:
    own = _ACTIVATIONS[node.op_type]
    wanted = list(attributes.get("activations", own))
    if wanted not in (own, own * 2):
        return f"CUDA's {node.op_type} does not offer the activations {', '.join(wanted)}"
    for name in ("clip", "activation_alpha", "activation_beta"):
        if name in attributes:
            return f"CUDA's {node.op_type} does not offer {name}"
    if attributes.get("input_forget", 0):
        return "CUDA's LSTM does not offer input_forget"
    if node.op_type == "GRU" and not attributes.get("linear_before_reset", 0):
        return "CUDA's GRU offers linear_before_reset=1 only"
    if node.op_type == "LSTM" and len(node.inputs) > 7 and node.inputs[7] is not None:
        return "CUDA's LSTM does not offer peepholes"
    return None
