"""Imported programs in a file, for tests that begin with the same one."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir
from miaotui.compiler.program import Program


def write_program(program: Program, path: Path) -> None:
    """All of it; its models as ONNX, without what they may hold of the framework that they came from."""
    models = {name: ir.to_proto(model).SerializeToString() for name, model in program.entries.items()}
    path.write_bytes(pickle.dumps((models, replace(program, entries={}))))


def read_program(path: Path) -> Program:
    """What ``write_program`` wrote."""
    models, rest = pickle.loads(path.read_bytes())
    entries = {name: ir.from_proto(onnx.load_from_string(data)) for name, data in models.items()}
    return replace(rest, entries=entries)
