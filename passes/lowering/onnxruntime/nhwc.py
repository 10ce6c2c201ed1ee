"""Convolutions with channels last, in which CUDA's kernels for tensor cores read and write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.program import LAYOUT, Program
from ...base import Note, Pass, PassContext, PassResult

DTYPES = (ir.DataType.FLOAT16,)
"""What tensor cores take; ONNX Runtime has no bfloat16 convolution with channels last."""


@dataclass(frozen=True)
class PreferNhwc(Pass):
    """Ask ONNX Runtime's CUDA provider to run convolutions and poolings in NHWC (``prefer_nhwc``).

    It transposes where such stretches begin and end, and cuDNN no longer does inside of every convolution.
    Whether that pays depends on channels and batch, so it is tried where it can be timed, and is off
    elsewhere unless it is asked for.
    """

    name: ClassVar[str] = "prefer-nhwc"

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Mark every entry that convolves images in half precision."""
        hits: list[Note] = []
        for entry, model in program.entries.items():
            found = [node for node in model.graph if _convolves(node)]
            if found and model.metadata_props.get(LAYOUT) != "NHWC":
                model.metadata_props[LAYOUT] = "NHWC"
                hits.append(Note(entry, f"{len(found)} convolutions with channels last"))
        return PassResult(len(hits), tuple(hits))


def _convolves(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain != "":
        return False
    made = node.outputs[0]
    return made.dtype in DTYPES and made.shape is not None and len(made.shape) == 4
