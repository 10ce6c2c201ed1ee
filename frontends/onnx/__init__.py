"""ONNX models: files read safely, checked, raised to one opset and normalised."""

from __future__ import annotations

from pathlib import Path

from onnx_ir.passes.common import NameFixPass

from ...compiler.options import CompileOptions
from ...compiler.program import Program
from ..base import Import
from .layers import set_node_sources
from .normalize import inline_functions, program_from_model, sort_graphs
from .operators import check_operators
from .read import read_model
from .recorded import check_shapes, check_types, settle_shapes
from .reference import OnnxReference
from .signature import apply_inputs, dim_ranges, name_dims


def import_onnx(path: str | Path, options: CompileOptions | None = None) -> Import:
    """The program of the ONNX file at ``path``, and plain ONNX Runtime on that file as its reference.

    Raises: ModelError for a file that is no sound model, UnsupportedError for operators nobody knows,
    InputError and OptionError for shapes and dimensions that contradict the model.
    """
    path, options = Path(path), CompileOptions() if options is None else options
    program = _program(path, options)
    return Import(program, OnnxReference(path, program, again=lambda: _program(path, options)))


def _program(path: Path, options: CompileOptions) -> Program:
    model = read_model(path)
    place = str(path)
    sort_graphs(model, place)
    set_node_sources(model, "onnx")
    inline_functions(model, place)
    NameFixPass()(model)
    check_operators(model, place)
    apply_inputs(model, options.inputs, place)
    name_dims(model)
    dims = dim_ranges(model, options.dims)
    settle_shapes(model)
    program = program_from_model(model, name=path.stem, dims=dims)
    check_shapes(program.main, place)
    check_types(program.main, place)
    program.source["path"] = str(path)
    return program


__all__ = ["import_onnx", "program_from_model"]
