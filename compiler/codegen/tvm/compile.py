"""From a Relax module to a library: fusion, schedules, code."""

from __future__ import annotations

from typing import Any

from .pipeline import FINISH, FLATTEN, FUSE, relax_passes


def compiled(tvm: Any, module: Any, target: Any) -> Any:
    """An executable of TVM's virtual machine."""
    from tvm import relax

    with target:
        module = tvm.transform.Sequential(relax_passes((*FUSE, *FLATTEN, *FINISH)))(module)
    return relax.build(module, target, relax_pipeline=None)
