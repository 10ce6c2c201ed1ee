"""Reference semantics: a program evaluated by onnx.reference and the dialect, without a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .. import dialect
from ..errors import InputError, Problem, UnsupportedError
from ..reference import Array, Arrays
from .check_structure import place
from .protos import proto_without_initializers
from .reference_ops import corrected_operators
from .signatures import STANDARD_DOMAINS

if TYPE_CHECKING:
    import onnx
    from onnx.reference.op_run import OpRun


def evaluate(model: ir.Model, inputs: Mapping[str, Array], taps: Sequence[str] = ()) -> Arrays:
    """The model's outputs for ``inputs``, by name, and the values called ``taps`` of its main graph.

    Slow but independent of any backend: tests and the numerics observer compare with it.

    Raises: InputError for inputs or taps the model does not have; UnsupportedError listing every
    operator without reference semantics.
    """
    _check(model, inputs, taps)
    from onnx.reference import ReferenceEvaluator

    try:
        proto = proto_without_initializers(model)
        _name_omitted(proto.graph)
        session = ReferenceEvaluator(proto, new_ops=list(_operators()))
    except NotImplementedError as error:
        raise UnsupportedError(f"graph {model.graph.name!r}", str(error)) from error
    feeds = {
        str(name): value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    feeds.update(inputs)
    names = list(dict.fromkeys([*(str(v.name) for v in model.graph.outputs), *taps]))
    with np.errstate(all="ignore"):  # a branch that Where does not take may divide by zero
        results = session.run(names, feeds)
    return dict(zip(names, results, strict=True))


def _check(model: ir.Model, inputs: Mapping[str, Array], taps: Sequence[str]) -> None:
    graph = model.graph
    known = {v.name for v in graph.inputs}
    found = [Problem(f"input {name!r}", "is not the model's") for name in inputs if name not in known]
    found += [
        Problem(f"input {name!r}", "is missing")
        for name in sorted(str(n) for n in known - set(graph.initializers))
        if name not in inputs
    ]
    values = {v.name for node in graph for v in node.outputs} | known | set(graph.initializers)
    found += [Problem(f"value {name!r}", "is not in the main graph") for name in taps if name not in values]
    if found:
        raise InputError.of(found)
    found = [
        Problem(place(node), "has no reference semantics")
        for node in graph.all_nodes()
        if node.domain not in STANDARD_DOMAINS
        and dialect.schema(node.domain, node.op_type) is None
        and node.op_identifier() not in model.functions
    ]
    if found:
        raise UnsupportedError.of(found)


_OMITTED = "omitted:"


def _name_omitted(graph: onnx.GraphProto) -> None:
    """Name omitted outputs: onnx.reference would store them as the value of every omitted input."""
    for index, node in enumerate(graph.node):
        for slot, name in enumerate(node.output):
            node.output[slot] = name or f"{_OMITTED}{index}:{slot}"
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                _name_omitted(body)


@cache
def _operators() -> tuple[type[OpRun], ...]:
    return (*corrected_operators(), *(_operator(schema) for schema in dialect.schemas()))


def _operator(schema: dialect.OpSchema) -> type[OpRun]:
    from onnx.helper import get_attribute_value
    from onnx.reference.op_run import OpRun

    def _run(self: OpRun, *inputs: Array | None, **_: Any) -> tuple[Array, ...]:
        attributes = {name: a.default for name, a in schema.attributes.items()}
        for proto in self.onnx_node.attribute:
            value = get_attribute_value(proto)
            attributes[proto.name] = value.decode() if isinstance(value, bytes) else value
        results = schema.reference(*inputs, **attributes)
        wanted = []
        for name, result in zip(self.onnx_node.output, results, strict=False):
            omitted = name.startswith(_OMITTED)
            if result is None and not omitted:
                raise UnsupportedError(
                    f"node {self.onnx_node.name!r} ({schema.domain}::{schema.name})",
                    f"output {name!r} has no reference semantics",
                )
            # onnx.reference insists on an array; an omitted output's is never read
            wanted.append(inputs[0] if result is None else result)
        return tuple(w for w in wanted if w is not None)

    return type(schema.name, (OpRun,), {"op_domain": schema.domain, "_run": _run})
