"""A Gantt picture of simulated stages: who computes which micro-batch when, and who waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import OptionError, require
from .simulate import Simulation, Span

SUFFIXES = (".png", ".svg")
CYCLES = 4
"""Steps of a micro-batch that are shown, about."""

SHOWN, LEGEND = 2000, 12
"""Bars, and micro-batches in the legend, at most."""


def check_picture(path: Path) -> None:
    """Raises: OptionError if no picture can be written to ``path``."""
    if path.suffix.lower() not in SUFFIXES:
        kinds = " or ".join(SUFFIXES)
        raise OptionError(
            f"--gantt {path}", f"{path.suffix or 'no suffix'} is no picture", f"name it {kinds}"
        )
    if not path.absolute().parent.is_dir():
        raise OptionError(f"--gantt {path}", "its folder does not exist", "make the folder first")


def draw(simulation: Simulation, title: str, path: Path) -> None:
    """Write the picture: a row a stage, a colour a micro-batch, hatched where prompts are read.

    Raises: OptionError as ``check_picture``; ToolError without matplotlib.
    """
    check_picture(path)
    require("matplotlib", extra="plan")
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    spans = window(simulation.spans)
    stages = 1 + max(span.stage for span in spans)
    begin, end = spans[0].start, max(span.end for span in spans)
    figure = Figure(figsize=(11, 1.6 + 0.45 * stages), layout="constrained")
    axes = figure.add_subplot()
    colours = [colormaps["tab20"](i) for i in range(20)]
    for span in spans:
        axes.barh(
            span.stage,
            1e3 * (span.end - span.start),
            left=1e3 * (span.start - begin),
            height=0.8,
            color=colours[span.micro_batch % len(colours)],
            edgecolor="white",
            linewidth=0.3,
            hatch="////" if span.prompt else None,
        )
    axes.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)])
    axes.invert_yaxis()
    axes.set_xlim(0, 1e3 * (end - begin))
    axes.set_xlabel("milliseconds")
    axes.set_title(f"{title}: stages wait {simulation.bubble:.0%} of the time", fontsize="medium")
    running = sorted({span.micro_batch for span in spans})[:LEGEND]
    shown = [Patch(color=colours[i % len(colours)], label=str(i)) for i in running]
    shown.append(Patch(facecolor="white", edgecolor="grey", hatch="////", label="reads prompts"))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(shown), "frameon": False}
    figure.legend(handles=shown, title="micro-batch", fontsize="small", title_fontsize="small", **place)
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None, dpi=150)


def window(spans: Sequence[Span]) -> list[Span]:
    """Spans of a few steps of every micro-batch, from before the first that reads prompts, once all run."""
    ordered = sorted(spans, key=lambda span: span.start)
    own = [span for span in ordered if (span.stage, span.micro_batch) == (0, ordered[0].micro_batch)]
    begins = [span.start for span in own]
    later = [span.start for span in own[1:] if span.prompt]
    first = max(begins.index(later[0]) - 1, 0) if later else 0
    last = begins[first + CYCLES] if first + CYCLES < len(begins) else float("inf")
    return [span for span in ordered if begins[first] <= span.start < last][:SHOWN]
