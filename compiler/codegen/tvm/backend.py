"""The TVM backend: a shared library per program, weights as parameters from the shared weight file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...errors import OptionError, UnsupportedError
from ...manifest import IN_PLACE
from ...options import Target
from ...program import TRIALS, Program
from ...weights import WeightStore
from ..base import Build
from ..isa import can_run, isa_of
from .kernels.kernel import Cpu
from .lowering import Parameter
from .support import reason_against, refused
from .target import isa_name, spelled
from .versions import require_tvm

LIBRARY = "model.so"

PARAMETERS = "parameters"
"""Setting: entry → [offset, bytes, dtype, shape] of what its function takes behind its inputs, as JSON."""

KERNELS = "kernels"
"""Setting: what the assembler says of each kernel on the device, as JSON."""

TUNING = "tuning"
"""Setting: what measuring schedules gave for each kernel, as JSON; `Tuned` of tuning.py."""


class TvmBackend:
    """Writes what ``runtime/tvm.py`` opens."""

    name = "tvm"

    def supports(self, node: ir.Node, target: Target) -> str | None:
        """None if there is a rule for ``node``, else the reason there is none."""
        return reason_against(node, target)

    def build(self, program: Program, target: Target, folder: Path, weights: WeightStore) -> Build:
        """Write the library into ``folder``, weights into the shared ``weights``.

        Raises: ToolError without a fitting TVM, UnsupportedError naming all nodes without a rule,
        OptionError if schedules are to be measured that do not run here, CompileError naming the reproducer
        if a pass of TVM's fails.
        """
        from .compile import compiled
        from .cuda import ahead_of_time
        from .cuda_listing import with_dynamic
        from .module import module_of
        from .tuning import Tuning

        if problems := refused(program, target):
            raise UnsupportedError.of(problems)
        trials = max(int(m.metadata_props.get(TRIALS, 0)) for m in program.entries.values())
        if trials and (target.device != "cpu" or not can_run(isa_of(target))):
            fact = f"schedules for {target} can't be measured on this machine"
            raise OptionError("--tune", fact, "compile for this CPU, or leave it out")
        tvm = require_tvm()
        made_for = tvm.target.Target(spelled(target))
        cpu = Cpu.of(made_for) if target.device == "cpu" else None
        lowered = module_of(tvm, program, cpu)
        tuning = None if not trials or cpu is None else Tuning(trials, isa_name(target), cpu.lanes)
        with nullcontext() if cpu is not None else ahead_of_time(target) as device:
            library = compiled(tvm, lowered.module, made_for, 0 if cpu is None else cpu.lanes, tuning)
            library.export_library(str(folder / LIBRARY))
        tables = {entry: [_stored(p, weights) for p in found] for entry, found in lowered.parameters.items()}
        settings = {PARAMETERS: json.dumps(tables, separators=(",", ":"))}
        if program.decoding is not None:
            settings[IN_PLACE] = "1"
        if tuning is not None:
            settings[TUNING] = json.dumps(tuning.settings(), separators=(",", ":"))
        if device is not None:
            kernels = with_dynamic(device.kernels, lowered.module)
            settings[KERNELS] = json.dumps([asdict(kernel) for kernel in kernels])
        if target.device == "cpu":
            settings["isa"] = isa_name(target)
        return Build(dict.fromkeys(program.entries, LIBRARY), settings)


def untuned(settings: Mapping[str, str]) -> dict[str, str]:
    """Kernels that were to be measured and could not be, of a variant's settings, and why."""
    return {
        each["kernel"]: each["declined"]
        for each in json.loads(settings.get(TUNING, "[]"))
        if each["declined"]
    }


def _stored(parameter: Parameter, weights: WeightStore) -> list[Any]:
    region = weights.add(parameter.tensor)
    return [region.offset, region.length, parameter.dtype, list(parameter.shape)]
