"""Translate an exported program to ONNX by torch; all operators it lacks are reported at once."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import onnx_ir as ir

from ...compiler.errors import Problem, UnsupportedError
from ...compiler.program import OPSET
from .capture import quiet
from .composite import composite_translations, decomposition_where_needed
from .translations import translations

_FRONTENDS = str(Path(__file__).parents[1])


def translate(exported: Any, name: str, *, owned: bool = False) -> tuple[ir.Model, Any]:
    """The ONNX model of ``exported`` (weights shared with it) and the decomposed program it was made from.

    ``owned``: the program is the caller's own and may be edited.

    Raises: UnsupportedError listing every operator without a translation, with counts and source lines.
    """
    table = {**composite_translations(), **translations()}
    made = None
    if owned:
        with suppress(Exception), decomposition_where_needed():  # else decomposed, which has the last word
            made = _exported_to_onnx(exported, table)
    if made is None:
        try:
            made = _exported_to_onnx(exported, table)
        except Exception as error:
            fallback = Problem(name, f"torch.onnx.export fails: {_innermost(error)}")
            raise UnsupportedError.of(_unsupported(exported, table) or [fallback]) from error
    _refuse_mutation(made.exported_program, name)
    return made.model, made.exported_program


def _exported_to_onnx(exported: Any, table: dict[Any, Any]) -> Any:
    import torch

    # no_grad as while capturing: with gradients torch picks other attention kernels, whose strides differ
    with quiet(), torch.no_grad():
        return torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            custom_translation_table=table,
        )


def _unsupported(exported: Any, table: dict[Any, Any]) -> list[Problem]:
    try:
        return unsupported_ops(exported, table)
    except Exception:  # the decomposition itself was what failed
        return []


def unsupported_ops(exported: Any, table: dict[Any, Any]) -> list[Problem]:
    """Operators of ``exported``, after decomposition, that the exporter's registry does not have."""
    from torch.onnx._internal.exporter import _core, _dispatching, _registration

    registry = _registration.ONNXRegistry.from_torchlib(opset_version=OPSET)
    for target, function in table.items():
        registry.register_op(target, function)
    decomposed = _core._prepare_exported_program_for_export(exported, registry=registry)
    places: dict[str, list[str]] = {}
    for module in decomposed.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            if node.op == "call_function" and "getitem" not in str(node.target):
                if str(getattr(node.target, "namespace", "")) == "onnx":
                    continue
                function, _ = _dispatching.dispatch(node, registry)
                if function is None:
                    places.setdefault(str(node.target), []).append(
                        source_line(node.meta.get("stack_trace") or "")
                    )
    problems = []
    for target, lines in places.items():
        known = list(dict.fromkeys(line for line in lines if line))
        where = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
        uses = f"{len(lines)} use{'s' if len(lines) > 1 else ''}"
        problems.append(
            Problem(where or "model", f"torch operator {target} has no ONNX translation ({uses})")
        )
    return problems


def source_line(stack_trace: str) -> str:
    """``file:line`` of the innermost frame of the model's own code in a torch stack trace."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack_trace)
    file, line = next((f for f in reversed(frames) if _is_model_code(f[0])), ("", ""))
    if not file:
        return ""
    return f"{PurePath(file).name}:{line}"


def _is_model_code(file: str) -> bool:
    return not file.startswith(_FRONTENDS) and not {"torch", "keras"} & set(PurePath(file).parts)


def _refuse_mutation(exported: Any, name: str) -> None:
    mutated = [
        Problem(name, f"forward writes to {spec.target or spec.arg.name!r}", "return the new state instead")
        for spec in exported.graph_signature.output_specs
        if "MUTATION" in spec.kind.name
    ]
    if mutated:
        raise UnsupportedError.of(mutated)


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:240]
