"""The order of TVM's passes by device, as data: fusion first, then schedules, then the virtual machine's."""

from __future__ import annotations

from typing import Any

FUSE = (
    "ConvertToDataflow",
    "LegalizeOps",
    "AnnotateTIROpPattern",
    "FoldConstant",
    "FuseOps",
    "FuseTIR",
    "RewriteDataflowReshape",
    "DeadCodeElimination",
)
"""Operators become kernels, and kernels that follow each other one; views cost nothing from here on."""

FLATTEN = ("ToNonDataflow", "RemovePurityChecking", "CallTIRRewrite")
"""Outputs are passed to kernels."""

FINISH = (
    "StaticPlanBlockMemory",
    "LowerAllocTensor",
    "KillAfterLastUse",
    "LowerRuntimeBuiltin",
    "ComputePrimValue",
    "VMShapeLower",
    "AttachGlobalSymbol",
)
"""Memory is planned and shapes are computed by the virtual machine."""


def relax_passes(names: tuple[str, ...]) -> list[Any]:
    """The passes of those names."""
    from tvm import relax

    return [getattr(relax.transform, name)() for name in names]
