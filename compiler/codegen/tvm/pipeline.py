"""The order of TVM's passes by device, as data: fusion first, then schedules, then the virtual machine's."""

from __future__ import annotations

from typing import Any

FUSE = ("LegalizeOps", "AnnotateTIROpPattern", "FoldConstant", "FuseOps", "FuseTIR", "DeadCodeElimination")
"""Operators become kernels, and kernels that follow each other one."""

DLIGHT = ("Matmul", "GEMV", "Reduction", "GeneralReduction", "Fallback")
"""Schedules for GPUs, the first that fits a kernel."""

FLATTEN = ("RewriteDataflowReshape", "ToNonDataflow", "RemovePurityChecking", "CallTIRRewrite")
"""Views cost nothing from here on, outputs are passed to kernels."""

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


def threads_bound() -> Any:
    """The pass that gives every kernel of a GPU its threads: products on tensor cores where they fit."""
    from tvm.s_tir import dlight

    rules = [getattr(dlight.gpu, name)() for name in DLIGHT]
    return dlight.ApplyDefaultSchedule(*rules)
