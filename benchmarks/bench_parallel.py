"""Executors of partitioned programs: hops, collectives, and what replicas and stages bring on these cores."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bench_structured import store
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.runtime.parallel.options import ParallelOptions
from miaotui.runtime.parallel.pool import Job
from miaotui.runtime.parallel.ray_cluster import QUIET
from miaotui.runtime.parallel.runner import ParallelModel, ParallelRunner
from parallel_plans import WIDTH, passed_on, perceptron, rows, signature, write

EXECUTORS = ("threads", "processes", "ray")
HOP = 256
"""Values of a row: 1 KB."""

SIZES = {"1 KB": 1, "1 MB": 1024}
PUBLISHED = {("threads", "1 KB"): 32, ("threads", "1 MB"): 185, ("ray", "1 KB"): 2317, ("ray", "1 MB"): 8920}
"""Microseconds of bare queues and bare actors on this kind of machine, as they were measured before."""

ROUNDS = 7


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--runs", type=int, default=60, help="runs of a round")
    given.add_argument("--without-ray", action="store_true")
    options = given.parse_args()
    executors = EXECUTORS[:2] if options.without_ray else EXECUTORS
    os.environ.update(QUIET)
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lines = [*hops(folder / "hops", executors, options.runs, table), ""]
        lines += [*collectives(folder / "collectives", executors, options.runs, table), ""]
        lines += throughput(folder / "throughput", table)
    store("parallel", "Partitioned programs: executors", lines, table)


def hops(folder: Path, executors: tuple[str, ...], runs: int, table: list[dict[str, Any]]) -> Iterator[str]:
    """A value through two stages and back: three hops."""
    plan = write(folder / "empty", Mesh(pp=2), HOP, None)
    parts = write(folder / "parts", Mesh(pp=2), HOP, passed_on)
    yield "Two stages that compute nothing, one request at a time: caller, stage, stage, caller. With parts:"
    yield "each runs a part in ONNX Runtime that copies its input. Bare: the same hops without miaotui,"
    yield "Python queues between threads, methods of two plain Ray actors; interleaved with ours. Ranks in"
    yield "threads that idle and were quick for inputs of the same shapes are run by the caller; woken: the"
    yield "same runs left to the ranks' threads."
    yield ""
    yield "| executor | size | median µs | p90 µs | with parts | bare | against bare | bare, noted before |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in executors:
        with ExitStack() as stack:
            ours = stack.enter_context(runner(plan, name, HOP, 2))
            copying = stack.enter_context(runner(parts, name, HOP, 2))
            bare = stack.enter_context(queues()) if name == "threads" else actors() if name == "ray" else None
            for size, count in SIZES.items():
                given = rows(count, HOP)
                calls = {"ours": bound(ours.run, given), "parts": bound(copying.run, given)}
                calls |= {"woken": bound(woken(ours), given)} if name == "threads" else {}
                calls |= {} if bare is None else {"bare": bound(bare, given["v0"])}
                times = interleaved(calls, runs)
                median, p90 = np.percentile(times["ours"], [50, 90])
                other = float(np.median(times["parts"]))
                own = None if bare is None else float(np.median(times["bare"]))
                row = {"executor": name, "size": size, "median": median, "p90": p90, "parts": other}
                table.append({"what": "hops", **row, "bare": own})
                told = "– | –" if own is None else f"{own:,.0f} | {median / own:.2f}×"
                noted = PUBLISHED.get((name, size), "–")
                yield f"| {name} | {size} | {median:,.0f} | {p90:,.0f} | {other:,.0f} | {told} | {noted} |"
                if "woken" in times:
                    median, p90 = np.percentile(times["woken"], [50, 90])
                    row = {"executor": f"{name}, woken", "size": size, "median": median, "p90": p90}
                    table.append({"what": "hops", **row})
                    yield f"| {name}, woken | {size} | {median:,.0f} | {p90:,.0f} | – | – | – | – |"


def collectives(
    folder: Path, executors: tuple[str, ...], runs: int, table: list[dict[str, Any]]
) -> Iterator[str]:
    """One AllReduce of two shards, from the difference between programs with eight and with none."""
    yield "AllReduce of two shards: a run with eight less a run with none, by eight."
    yield ""
    yield "| executor | collectives | size | µs each |"
    yield "|---|---|---|---|"
    plans = {n: write(folder / str(n), Mesh(tp=2), HOP, passed_on, n) for n in (0, 8)}
    kinds = {"threads": "memory", "processes": "shared memory", "processes{collectives=gloo}": "gloo"}
    with ExitStack() as stack:
        opened = {
            (name, n): stack.enter_context(runner(plan, name, HOP, 1))
            for name in kinds
            for n, plan in plans.items()
        }
        for size, count in {"4 KB": 4, "1 MB": 1024}.items():
            given = rows(count, HOP)
            times = interleaved({key: bound(one.run, given) for key, one in opened.items()}, runs)
            for name, kind in kinds.items():
                each = (np.median(times[name, 8]) - np.median(times[name, 0])) / 8
                table.append({"what": "allreduce", "executor": name, "size": size, "each": each})
                yield f"| {name.partition('{')[0]} | {kind} | {size} | {each:,.0f} |"


def throughput(folder: Path, table: list[dict[str, Any]]) -> Iterator[str]:
    """Rows a second of a perceptron on one core, on two as replicas, on two as stages."""
    batch = 128
    yield f"A perceptron of 4 layers {WIDTH}×2048, batch {batch}, every rank one thread; interleaved."
    yield ""
    yield "| mesh | executor | micro-batches | rows/s | against one thread [p10, p90 of rounds] |"
    yield "|---|---|---|---|---|"
    forms = [
        (Mesh(), "threads{micro_batches=1}"),
        *((Mesh(dp=2), f"{name}{{micro_batches=1}}") for name in EXECUTORS[:2]),
        *((Mesh(pp=2), f"{name}{{micro_batches={n}}}") for name in EXECUTORS[:2] for n in (1, 4, 8)),
    ]
    given = rows(batch, WIDTH)
    with ExitStack() as stack:
        calls = {}
        for mesh, name in forms:
            place = folder / f"dp{mesh.dp}.pp{mesh.pp}"
            plan = place if place.exists() else write(place, mesh, WIDTH, perceptron(mesh.pp))
            calls[mesh, name] = bound(stack.enter_context(runner(plan, name, WIDTH, mesh.pp)).run, given)
        times = {key: found.reshape(ROUNDS, -1) for key, found in interleaved(calls, 8).items()}
    single = np.median(times[forms[0]], axis=1)
    for mesh, name in forms:
        found = np.median(times[mesh, name], axis=1)
        gain, (low, high) = np.median(single / found), np.percentile(single / found, [10, 90])
        rate = batch / np.median(found) * 1e6
        executor, _, micro = name.rstrip("}").partition("{micro_batches=")
        table.append({"what": "throughput", "mesh": str(mesh), "executor": name, "rate": rate, "gain": gain})
        yield f"| {mesh} | {executor} | {micro} | {rate:,.0f} | {gain:.2f}× [{low:.2f}, {high:.2f}] |"


@contextmanager
def runner(plan: Path, executor: str, width: int, stages: int) -> Iterator[ParallelRunner]:
    options = ParallelOptions.parse(executor)
    if stages > 1 and not options.micro_batches:
        options = ParallelOptions(executor=options.executor, micro_batches=1)
    with ParallelModel(plan, signature(width, stages), options=options).open(1) as opened:
        yield opened


def woken(opened: ParallelRunner) -> Callable[[Any], Any]:
    """A run as of many: by the ranks' own threads."""
    pool = opened._open()
    return lambda given: pool.do("main", [Job(0, given)])


def interleaved(calls: Mapping[Any, Callable[[], Any]], runs: int) -> dict[Any, np.ndarray[Any, Any]]:
    """Microseconds of every run, float[ROUNDS * runs]: the candidates take turns, round by round."""
    found: dict[Any, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            for _ in range(runs):
                start = time.perf_counter()
                call()
                if number:
                    found[name].append((time.perf_counter() - start) * 1e6)
    return {name: np.array(times) for name, times in found.items()}


def bound(call: Callable[[Any], Any], given: Any) -> Callable[[], Any]:
    return lambda: call(given)


@contextmanager
def queues() -> Iterator[Callable[[Any], Any]]:
    """Two threads that pass on what they get."""
    import threading
    from queue import SimpleQueue

    boxes: list[SimpleQueue[Any]] = [SimpleQueue() for _ in range(3)]

    def serve(stage: int) -> None:
        while (value := boxes[stage].get()) is not None:
            boxes[stage + 1].put(value)

    threads = [threading.Thread(target=serve, args=(stage,)) for stage in range(2)]
    for thread in threads:
        thread.start()

    def run(value: Any) -> Any:
        boxes[0].put(value)
        return boxes[2].get()

    try:
        yield run
    finally:
        for box in boxes[:2]:
            box.put(None)


def actors() -> Callable[[Any], Any]:
    """Two plain Ray actors that pass on what they get."""
    import ray

    class Stage:
        def run(self, value: Any) -> Any:
            return value

    kind: Any = ray.remote(Stage)
    first, second = (kind.options(num_cpus=0).remote() for _ in range(2))
    return lambda value: ray.get(second.run.remote(first.run.remote(value)))


if __name__ == "__main__":
    main()
