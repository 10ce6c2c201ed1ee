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

DLIGHT = ("Matmul", "GEMV", "Reduction", "GeneralReduction", "Fallback")
"""Schedules for GPUs, the first that fits a kernel."""

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


def threads_bound() -> Any:
    """The pass that gives every kernel of a GPU its threads: products on tensor cores where they fit."""
    from tvm.s_tir import dlight

    rules = [_Tried(getattr(dlight.gpu, name)()) for name in DLIGHT]
    return dlight.ApplyDefaultSchedule(*rules)


class _Tried:
    """A rule of dlight's; where it fails, it does not fit: some find out only while they schedule."""

    def __init__(self, rule: Any) -> None:
        self._rule = rule

    def apply(self, function: Any, target: Any, tunable: bool) -> Any:
        """A schedule, or None. The last rule fits every kernel."""
        try:
            return self._rule.apply(function, target, tunable)
        except Exception:  # dlight's rules raise whatever TVM and Python do
            return None
