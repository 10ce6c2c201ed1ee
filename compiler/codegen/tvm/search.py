"""Schedules of one kernel: drawn by TVM's meta-schedule, measured and written down, the best compared."""

from __future__ import annotations

import contextlib
import fcntl
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import require
from .schedule import scheduled
from .stopwatch import Argument, MeasureError, Stopwatch

_ROUND = 16
"""Schedules measured before the next ones are chosen."""

_MODELLED = 64
"""Trials from which on a learned cost model pays; below, candidates are drawn at random."""

_POPULATION, _GENERATIONS = 64, 2
"""Schedules that evolve between two rounds, and how often: TVM's 512 and 4 take longer than measuring."""

_FINALISTS = 3
"""Schedules that are timed against the one without tuning, interleaved."""

_TRIAL, _FINAL = 0.02, 0.1
"""Seconds that a schedule is timed, while many are and at the end."""

_BETTER = 0.97
"""Share of the untuned time that a tuned kernel takes at most, in three of four rounds, to be kept."""

_FAILED = 1e10
"""Seconds of a schedule that could not be measured, as TVM writes them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``trials`` schedules gave: seconds of a call, and the kernel as TVM's JSON if it is faster."""

    trials: int
    untuned: float
    tuned: float
    kernel: str | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """Of the function ``main`` of a module; ``folder`` is its own, ``lanes`` floats are in a vector."""

    tvm: Any
    module: Any
    target: Any
    lanes: int
    folder: Path

    def known(self, trials: int) -> Verdict | None:
        """An earlier verdict after as many trials. None if there is none, or it is of another kernel."""
        try:
            stored = json.loads((self.folder / "verdict.json").read_text("utf-8"))
            found = Verdict(**stored)
        except (OSError, ValueError, TypeError):
            return None
        return found if found.trials >= trials and self._database().has_workload(self.module) else None

    def verdict(self, trials: int, watch: Stopwatch) -> Verdict:
        """After ``trials`` schedules, with those measured before. Raises: TVM's errors, MeasureError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "lock"):
            if (found := self.known(trials)) is not None:
                return found
            database = self._database()
            workload = database.commit_workload(self.module)
            left = trials - measured(database, workload)
            if left > 0:
                self._measure(database, workload, trials, left, watch)
            found = self._final(database, workload, trials, watch)
            _write(self.folder / "verdict.json", json.dumps(asdict(found)))
            return found

    def _database(self) -> Any:
        """What was measured. A line that was not finished is cut off; what can't be read begins anew."""
        from tvm.s_tir.meta_schedule.database import JSONDatabase

        for file in self.folder.glob("database_*.json"):
            text = file.read_bytes()
            if text and not text.endswith(b"\n"):
                file.write_bytes(text[: text.rfind(b"\n") + 1])
        try:
            return JSONDatabase(work_dir=str(self.folder))
        except Exception:  # as TVM raises it: written by another version, or damaged
            for file in self.folder.glob("*.json"):
                file.unlink()
            return JSONDatabase(work_dir=str(self.folder))

    def _measure(self, database: Any, workload: Any, trials: int, left: int, watch: Stopwatch) -> None:
        from tvm.s_tir import meta_schedule as ms

        ffi = require("tvm_ffi", extra="tvm")
        model, strategy = ms.cost_model.RandomModel(), ms.search_strategy.ReplayTrace()
        if learns := trials >= _MODELLED:
            require("xgboost", extra="tvm")
            model = ms.cost_model.XGBModel(num_tuning_cores=1)
            strategy = ms.search_strategy.EvolutionarySearch(
                population_size=_POPULATION, genetic_num_iters=_GENERATIONS
            )
        context = ms.TuneContext(
            self.module,
            target=self.target,
            space_generator="post-order-apply",
            search_strategy=strategy,
            task_name="kernel",
            rand_state=1 + trials - left,  # what is drawn after an interruption differs from before
            num_threads=1,
        )
        context.pre_tuning(left, min(left, _ROUND), database=database, cost_model=model)
        seen: dict[int, list[float]] = {}
        while drawn := context.generate_measure_candidates():
            results = []
            for candidate in drawn:
                key = ffi.structural_hash(candidate.sch.mod)
                if key not in seen:
                    seen[key] = self._seconds(candidate, watch)
                record = ms.database.TuningRecord(
                    candidate.sch.trace, workload, seen[key], self.target, candidate.args_info
                )
                database.commit_tuning_record(record)
                failed = seen[key] == [_FAILED]
                results.append(ms.runner.RunnerResult(None, "failed") if failed else _result(ms, seen[key]))
            context.notify_runner_results(drawn, results)
            if learns:
                model.update(context, drawn, results)
        context.post_tuning()

    def _seconds(self, candidate: Any, watch: Stopwatch) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="miaotui-tune-") as folder:
            try:
                library = self._built(candidate.sch.mod, Path(folder) / "kernel.so")
                (found,) = watch.seconds([library], arguments(candidate.args_info), _TRIAL)
            except Exception:  # TVM can't build it, or it crashed: the next one may do better
                return [_FAILED]
        return sorted(found)[: len(found) // 2 + 1]  # what something else on the machine held up is left out

    def _built(self, module: Any, library: Path) -> Path:
        self.tvm.tirx.build(module, self.target).export_library(str(library))
        return library

    def _final(self, database: Any, workload: Any, trials: int, watch: Stopwatch) -> Verdict:
        """The best ones timed against the schedule that there is without tuning."""
        records = [r for r in database.get_top_k(workload, _FINALISTS) if _mean(r) < _FAILED]
        if not records:
            raise MeasureError("kernel", f"none of {trials} schedules could be measured", "leave --tune out")
        modules = [scheduled(self.tvm, self.module, self.lanes), *map(self._replayed, records)]
        with tempfile.TemporaryDirectory(prefix="miaotui-tune-") as folder:
            libraries = [
                self._built(module, Path(folder) / f"kernel{number}.so")
                for number, module in enumerate(modules)
            ]
            untuned, *rivals = watch.seconds(libraries, arguments(records[0].args_info), _FINAL)
        best = min(range(len(rivals)), key=lambda index: statistics.median(rivals[index]))
        ratios = sorted(ours / theirs for ours, theirs in zip(rivals[best], untuned, strict=True))
        kept = ratios[3 * len(ratios) // 4] <= _BETTER
        kernel = self.tvm.ir.save_json(modules[1 + best]["main"]) if kept else None
        return Verdict(trials, statistics.median(untuned), statistics.median(rivals[best]), kernel)

    def _replayed(self, record: Any) -> Any:
        schedule = self.tvm.s_tir.Schedule(self.module)
        record.trace.apply_to_schedule(schedule, remove_postproc=False)
        return schedule.mod


def measured(database: Any, workload: Any) -> int:
    """How many schedules of a kernel were measured."""
    return sum(record.workload.same_as(workload) for record in database.get_all_tuning_records())


def arguments(infos: Any) -> list[Argument]:
    """dtype and shape of what a kernel takes."""
    return [(str(info.dtype), tuple(map(int, info.shape))) for info in infos]


def _result(ms: Any, seconds: list[float]) -> Any:
    return ms.runner.RunnerResult(seconds, None)


def _mean(record: Any) -> float:
    return statistics.fmean(float(s) for s in record.run_secs)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two compiles never write to one folder at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
