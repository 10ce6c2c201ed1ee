"""Proof of placement: a real session tells which nodes of a GPU variant it left to the CPU."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from ..compiler.artifact import Artifact
from ..compiler.codegen.onnxruntime import placement
from ..compiler.errors import Problem
from ..compiler.program import Program
from .base import Model
from .onnxruntime import OnnxRuntimeModel, OnnxRuntimeRunner
from .session import model_of


def left_to_cpu(artifact: Artifact, variant: str | None = None, entry: str = "main") -> list[Problem]:
    """Every node of ``variant`` that ONNX Runtime placed on the CPU though its target is a GPU.

    Shape arithmetic, which belongs there, is left out. Opens a session of its own.
    Raises: ToolError if the GPU provider can't start.
    """
    return left_to_cpu_by(model_of(artifact, variant, entry))


def left_to_cpu_by(model: Model) -> list[Problem]:
    """``left_to_cpu`` of what a session is made from."""
    if model.target.device == "cpu" or not isinstance(model, OnnxRuntimeModel):
        return []
    import onnx

    program = Program({"main": ir.from_proto(onnx.load_from_string(model.data))})
    recording = replace(model, settings={**model.settings, placement.RECORD: "1"})
    with OnnxRuntimeRunner(recording) as runner:
        return placement.actual(runner._session, program)
