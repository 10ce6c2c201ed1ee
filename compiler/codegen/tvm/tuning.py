"""Schedules measured by TVM's meta-schedule, kernel by kernel, and kept by kernel for later compiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import require
from ...places import cache_folder

_ROUND = 16
"""Schedules measured before the next ones are chosen, and written down."""

_MODELLED = 64
"""Trials from which on a learned cost model pays; below, candidates are drawn at random."""


def tuned(tvm: Any, module: Any, target: Any, *, trials: int, isa: str) -> Any:
    """The module with the best schedules known for its kernels, after at most ``trials`` more for each.

    Kernels of our own and those whose sizes are known only when they run stay as they are. What was measured
    before counts: an interrupted run goes on where it was.
    """
    from tvm import relax
    from tvm.s_tir import meta_schedule as ms

    for name in ("cloudpickle", "psutil", *(("xgboost",) if trials >= _MODELLED else ())):
        require(name, extra="tvm")
    folder = tuning_folder(isa)
    folder.mkdir(parents=True, exist_ok=True)
    database = ms.database.JSONDatabase(work_dir=str(folder))
    counted = tvm.target.Target({**_attributes(target), "num-cores": 1})
    for task in ms.relax_integration.extract_tasks(module, counted):
        left = trials - measured(database, task) if _is_tunable(tvm, task.dispatched[0]["main"]) else 0
        if left > 0:
            _tune(ms, task, database, folder, left, "xgb" if trials >= _MODELLED else "random")
    with counted, database:
        return relax.transform.MetaScheduleApplyDatabase(enable_warning=False)(module)


def tuning_folder(isa: str) -> Path:
    """Where the measurements for an instruction set lie."""
    return cache_folder() / "tvm" / isa


def measured(database: Any, task: Any) -> int:
    """How many schedules of a task are in the database."""
    [module] = task.dispatched
    if not database.has_workload(module):
        return 0
    workload = database.commit_workload(module)
    return sum(record.workload.same_as(workload) for record in database.get_all_tuning_records())


def _is_tunable(tvm: Any, function: Any) -> bool:
    if function.attrs is not None and function.attrs.get("tirx.is_scheduled", False):
        return False
    if any(not hasattr(p.ty, "shape") for p in function.params):
        return False  # a size that is passed by itself
    sizes = [size for p in function.params for size in p.ty.shape]
    return all(isinstance(size, (int, tvm.tirx.IntImm)) for size in sizes)


def _attributes(target: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": str(target.kind.name)}
    for name in ("mcpu", "mattr", "mtriple"):
        if name in target.attrs:
            value = target.attrs[name]
            found[name] = value if isinstance(value, str) else [str(v) for v in value]
    return found


def _tune(ms: Any, task: Any, database: Any, folder: Path, trials: int, model: str) -> None:
    # evolution looks at hundreds of candidates for each one it measures: too slow where few are measured
    strategy = "evolutionary" if model == "xgb" else "replay-trace"
    contexts, weights = ms.relax_integration.extracted_tasks_to_tune_contexts(
        [task], str(folder), strategy=strategy, num_threads=1
    )
    ms.tune.tune_tasks(
        tasks=contexts,
        task_weights=weights,
        work_dir=str(folder),
        max_trials_global=trials,
        num_trials_per_iter=min(trials, _ROUND),
        database=database,
        cost_model=model,
    )
