"""The report as one static page: the waterfall as a table with bars, errors, latencies, sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from .decision import told

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { padding: .2rem .6rem; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #999; font-weight: 600; }
tr.total td { border-top: 1px solid #999; font-weight: 600; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .7em; margin-left: .4em; min-width: 1px; }
.less { background: #2a7f62; } .more { background: #b5472f; }
small { color: #666; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd; } }
"""

_WIDEST = 6.0
"""Width of a column's longest bar, em."""


def page_of(report: Mapping[str, Any]) -> str:
    """``report.html``: HTML without scripts, and without anything from elsewhere."""
    title = f"{report['model']} for {report['target']}"
    facts = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in _facts(report))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n<table>{facts}</table>\n"
        f"{_waterfall(report['waterfall'], report['error'])}\n{_reasons(report['passes'])}</body></html>\n"
    )


def _facts(report: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    error, times = report["error"], report["latency"]
    if error is not None:
        yield "error", _error(error)
        if error["faithful"] is not None:
            yield "faithful", _error(error["faithful"])
    if times is not None:
        source, now = (1e3 * times[name]["median"] for name in ("source", "optimized"))
        ratio = "" if times["ratio"] is None else f", {times['ratio']:.2f} times as fast"
        yield "latency", f"{source:.3g} ms to {now:.3g} ms{ratio}; {times['threads']} threads"
    for line in told(report["choice"]):
        yield "backend", line
    yield "size", ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in report["sizes"].items())
    yield "nodes", f"{report['nodes']['before']} to {report['nodes']['after']}"
    for note in report["notes"]:
        yield "note", note


def _error(error: Mapping[str, Any]) -> str:
    kind = "mean KL, nats a token" if error["metric"] == "kl" else "scaled error"
    return f"{error['scaled']:.2g} {kind}; tolerance {error['tolerance']:.2g}; against {error['reference']}"


def _waterfall(fall: Mapping[str, Any], error: Mapping[str, Any] | None) -> str:
    metric = "KL" if error is not None and error["metric"] == "kl" else "error"
    columns = (("seconds", 1e3), ("bytes", 1e-6), ("error", 1.0))
    widest = {key: max((abs(row[key] or 0) for row in fall["rows"]), default=0) or 1.0 for key, _ in columns}
    heads = ("pass", "rewrites", "declined", "Δ ms", "Δ MB", f"Δ {metric}", "")
    rows = []
    for row in fall["rows"]:
        cells = "".join(_cell(row[key], scale, widest[key]) for key, scale in columns)
        told = f"reverted: {row['reverted']}" if row["reverted"] else row["how"]
        rows.append(
            f'<tr><td>{escape(row["pass"])}</td><td class="number">{row["nodes"]}</td>'
            f'<td class="number">{row["declined"]}</td>{cells}<td><small>{escape(told)}</small></td></tr>'
        )
    total = fall["total"]
    cells = "".join(_cell(total[key], scale, None) for key, scale in columns)
    rows.append(
        f'<tr class="total"><td>source to result</td><td class="number">{total["nodes"]}</td>'
        f'<td class="number">{total["declined"]}</td>{cells}<td></td></tr>'
    )
    told = ""
    if fall["unmeasured"]:
        told = f"<p>not measured: {escape(', '.join(fall['unmeasured']))} ({escape(fall['why'])})</p>"
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return (
        f"<h2>Waterfall</h2><table><tr>{head}</tr>{''.join(rows)}</table>{told}"
        "<p><small>prefix: the program before and after the pass; left out: the result without the pass "
        "alone, figures that do not add up; a name: in the figures of that pass.</small></p>"
    )


def _cell(value: float | None, scale: float, widest: float | None) -> str:
    if value is None:
        return '<td class="number">–</td>'
    bar = ""
    if widest is not None and value:
        kind = "less" if value < 0 else "more"
        bar = f'<span class="bar {kind}" style="width:{_WIDEST * abs(value) / widest:.2f}em"></span>'
    return f'<td class="number">{value * scale:+.3g}{bar}</td>'


def _reasons(passes: Iterable[Mapping[str, Any]]) -> str:
    """What each pass did and declined, folded up."""
    found = []
    for entry in passes:
        for kind in ("hits", "declined"):
            if entry[kind]:
                items = "".join(f"<li>{escape(note)}</li>" for note in entry[kind])
                found.append(
                    f"<details><summary>{escape(entry['name'])}: {len(entry[kind])} {kind}</summary>"
                    f"<ul>{items}</ul></details>"
                )
    return "<h2>Nodes</h2>" + "".join(found) if found else ""
