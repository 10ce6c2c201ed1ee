"""The planner against published measurements: rows left out, rows never fitted; and how long a plan takes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import miaotui.compiler.planner as planner
import numpy as np
from bench_structured import store
from miaotui.compiler.planner.catalogue import devices
from miaotui.compiler.planner.layout import told
from miaotui.compiler.planner.load import Load
from miaotui.compiler.planner.search import Wish, plan
from planner_fit import RANGES, Values, as_toml, constants_from, errors, fit, left_out
from published import Row, networks, rows

MEDIAN, WORST = 0.20, 0.40
"""Errors that were asked for, of predicting each row from all others."""


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--write", action="store_true", help="store the constants in the package")
    options = given.parse_args()
    everything = rows()
    fitted = [row for row in everything if row.fitted]
    apart = left_out(fitted)
    values = fit(fitted)
    if options.write:
        text = as_toml(values, len(fitted), float(np.median(abs(apart))), float(abs(apart).max()))
        Path(planner.__path__[0], "constants.toml").write_text(text, "utf-8")
    table: list[dict[str, Any]] = []
    lines = [*one_out(fitted, values, apart, table), ""]
    lines += [*groups_out(fitted, table), ""]
    lines += [*never_fitted([row for row in everything if not row.fitted], values, table), ""]
    lines += [*constants(values), ""]
    lines += planning(table)
    store("planner", "Planner against published measurements", lines, table)


def one_out(
    fitted: Sequence[Row], values: dict[str, float], apart: Values, table: list[dict[str, Any]]
) -> Iterator[str]:
    """Each row under constants fitted to all others."""
    own = errors(constants_from(values), fitted)
    yield f"{len(fitted)} rows (benchmarks/published.toml names their sources), {len(RANGES)} constants."
    yield "Left out: the row's error under constants fitted to all others; fitted: under those fitted to all."
    yield ""
    yield from summary([("left out", apart), ("fitted", own)])
    yield f"| asked | | {MEDIAN:.0%} | – | {WORST:.0%} | – |"
    yield ""
    yield "| stack | model | device | precision | mesh | prompt/output | published | left out | fitted |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row, out, inside in zip(fitted, apart, own, strict=True):
        yield f"{named(row)} | {out:+.0%} | {inside:+.0%} |"
        table.append({**plain(row), "kind": "left out", "error": float(out), "fitted": float(inside)})


def groups_out(fitted: Sequence[Row], table: list[dict[str, Any]]) -> Iterator[str]:
    """Whole groups under constants fitted to the others: harder, for what is alike is left out together."""
    yield "Whole groups left out, all rows of a stack, a model, a device or a mesh at a time:"
    yield ""
    yield "| by | group | rows | median | worst |"
    yield "|---|---|---|---|---|"
    keys: dict[str, Callable[[Row], str]] = {
        "stack": lambda row: row.stack,
        "model": lambda row: row.model,
        "device": lambda row: row.device,
        "mesh": lambda row: told(row.mesh),
    }
    for by, key in keys.items():
        for group in dict.fromkeys(map(key, fitted)):
            out = [row for row in fitted if key(row) == group]
            found = abs(errors(constants_from(fit([row for row in fitted if key(row) != group])), out))
            yield f"| {by} | {group} | {len(out)} | {np.median(found):.0%} | {found.max():.0%} |"
            entry = {"kind": f"left out by {by}", "group": group, "rows": len(out)}
            table.append({**entry, "median": float(np.median(found)), "worst": float(found.max())})


def never_fitted(held: Sequence[Row], values: dict[str, float], table: list[dict[str, Any]]) -> Iterator[str]:
    """Rows that no constant has seen."""
    found = errors(constants_from(values), held)
    yield f"{len(held)} further rows of the same tables, which no constant was fitted to:"
    yield ""
    pairs = list(dict.fromkeys((row.model, row.device) for row in held))
    parts = [("all", found)]
    for pair in pairs:
        own = np.array([(row.model, row.device) == pair for row in held])
        parts.append((" on ".join(pair), found[own]))
    yield from summary(parts)
    for row, error in zip(held, found, strict=True):
        table.append({**plain(row), "kind": "never fitted", "error": float(error)})


def summary(parts: Sequence[tuple[str, Values]]) -> Iterator[str]:
    yield "| errors | rows | median | p90 | worst | mean, signed |"
    yield "|---|---|---|---|---|---|"
    for name, found in parts:
        size = abs(found)
        spread = f"{np.median(size):.1%} | {np.quantile(size, 0.9):.0%} | {size.max():.0%}"
        yield f"| {name} | {len(found)} | {spread} | {found.mean():+.0%} |"


def constants(values: dict[str, float]) -> Iterator[str]:
    yield "Constants fitted to all rows: shares of the data sheet's rates, tokens, seconds."
    yield ""
    yield "| " + " | ".join(values) + " |"
    yield "|" + "---|" * len(values)
    yield "| " + " | ".join(f"{value:.3g}" for value in values.values()) + " |"


def planning(table: list[dict[str, Any]]) -> Iterator[str]:
    """Time of a whole search."""
    yield "Planning, median of 5; and with a token every 100 ms, for which fewer sequences are tried too:"
    yield ""
    yield "| model | devices | meshes | ms | ms with a limit | throughput's mesh |"
    yield "|---|---|---|---|---|---|"
    for model, text in (("llama-70b", "8xh100"), ("llama-405b", "64xh200"), ("qwen3-235b-a22b", "256xb200")):
        network, (count, device) = networks()[model], devices(text)
        wish = Wish(Load(1000, 500), precision="fp8")
        taken, planned = timed(partial(plan, network, count, device, wish))
        limited, _ = timed(partial(plan, network, count, device, replace(wish, slowest_next=0.1)))
        mesh = told(planned.best.mesh)
        yield f"| {model} | {text} | {planned.meshes} | {taken * 1e3:.0f} | {limited * 1e3:.0f} | {mesh} |"
        table.append(
            {"kind": "planning", "model": model, "devices": text, "seconds": taken, "limited": limited}
        )


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)), result


def named(row: Row) -> str:
    unit = "ms" if row.milliseconds else "tok/s"
    lengths = f"{row.load.prompt}/{row.load.output}"
    parts = (
        row.stack,
        row.model,
        row.device,
        row.precision,
        told(row.mesh),
        lengths,
        f"{row.value:,g} {unit}",
    )
    return "| " + " | ".join(parts)


def plain(row: Row) -> dict[str, Any]:
    mesh = {"pp": row.mesh.pp, "tp": row.mesh.tp}
    found = {key: getattr(row, key) for key in ("stack", "model", "device", "precision", "value")}
    return {**found, **mesh, "prompt": row.load.prompt, "output": row.load.output}


if __name__ == "__main__":
    main()
