"""Draw a scene as SVG text: geometry of boxes, arrows with labels, title and legend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from html import escape

import onnx_ir as ir

from ..ir.provenance import sources
from .layout import Extent, Layout, layered
from .scene import NODE_LIMIT, Box, Scene, modules, operators, under

MARGIN = 28.0
HEADER = 74.0
TITLE, SMALL, BOLD = 13.0, 10.5, 1.12
FONT = "Inter, 'Segoe UI', Helvetica, Arial, sans-serif"
NARROW, WIDE = frozenset("iljtfrI.,:;'|![]() -"), frozenset("mwMWQGO@%—…")


def draw(graph: ir.Graph | ir.Function, module: str = "") -> str:
    """A graph, or the part of it that comes from source ``module``, as a standalone SVG document.

    Graphs of more than NODE_LIMIT operators are drawn by module. Raises: OptionError for an unknown module.
    """
    count = sum(under(module, sources(node)) for node in graph)
    return _svg(modules(graph, module) if count > NODE_LIMIT else operators(graph, module))


def text_width(text: str, size: float) -> float:
    """Estimated width in px of ``text`` in a sans-serif of ``size`` px (no font is at hand to measure)."""
    return size * sum(
        0.36 if c in NARROW else 0.92 if c in WIDE else 0.68 if c.isupper() else 0.61 for c in text
    )


def _svg(scene: Scene) -> str:
    drawing = _Drawing(scene)
    legend, legend_width = _legend(scene)
    layout = drawing.layout
    width = max(layout.width, legend_width, text_width(scene.title, 16) * BOLD) + 2 * MARGIN
    height = layout.height + HEADER + 2 * MARGIN
    left, top = (width - layout.width) / 2, HEADER + MARGIN / 2
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="{FONT}">',
        f"<title>{_text(scene.title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0.8 L7.5 4 L0 7.2 z" fill="#94a3b8"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{MARGIN:.0f}" y="34" font-size="16" font-weight="600" fill="#0f172a">'
        f"{_text(scene.title)}</text>",
        *legend,
        f'<g transform="translate({left:.1f} {top:.1f})">',
        *(drawing.arrow(i) for i in range(len(scene.arrows))),
        *(drawing.box(i) for i in range(len(scene.boxes))),
        *drawing.labels(),
        "</g>",
        "</svg>",
        "",
    ])  # fmt: skip


class _Drawing:
    """A scene with its geometry; every method gives one piece of SVG."""

    __slots__ = ("entering", "layout", "leaving", "said", "scene", "widths")

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.entering: dict[int, list[int]] = defaultdict(list)
        self.leaving: dict[int, dict[int, list[int]]] = defaultdict(dict)
        for i, arrow in enumerate(scene.arrows):
            self.entering[arrow.head].append(i)
            self.leaving[arrow.tail].setdefault(arrow.port, []).append(i)
        self.said = {box: self._said(box) for box in self.leaving}
        self.widths = [self._width(i) for i in range(len(scene.boxes))]
        extents = [self._extent(i) for i in range(len(scene.boxes))]
        self.layout: Layout = layered(extents, [(a.tail, a.head, a.port) for a in scene.arrows])
        for rivals in self.entering.values():
            rivals.sort(key=lambda i: (self.layout.bends[i] or [self._start(i)])[-1][0])

    def _said(self, box: int) -> list[str]:
        """Label of each output of a box; equal outputs say it once, at the last."""
        ports = self.leaving[box]
        labels = [self.scene.arrows[ports[port][0]].label for port in sorted(ports)]
        if len(labels) < 2 or len(set(labels)) > 1 or not labels[0]:
            return labels
        return [""] * (len(labels) - 1) + [f"{len(labels)} × {labels[0]}"]

    def _width(self, number: int) -> float:
        box, labels = self.scene.boxes[number], self.said.get(number, [])
        text = max(text_width(box.title, TITLE) * BOLD, text_width(box.subtitle, SMALL)) + 26
        spoken = [text_width(label, SMALL) + 18 for label in labels if label]
        ports = (
            0.0 if len(labels) < 2 else len(labels) * max(spoken) if len(spoken) > 1 else 34.0 * len(labels)
        )
        return max(64.0, text, ports)

    def _extent(self, number: int) -> Extent:
        """Room for the box, and for the labels below it that stand out on its sides."""
        half, labels = self.widths[number] / 2, self.said.get(number, [""])
        label = text_width(labels[-1], SMALL) + 8
        right = max(half, self._port(number, len(labels) - 1) + label)
        return Extent(
            max(half, label) if len(labels) == 1 else half, right, _height(self.scene.boxes[number])
        )

    def _port(self, box: int, port: int) -> float:
        """x of an output's arrow relative to the centre of its box."""
        count = len(self.said.get(box, ()))
        return 0.0 if count < 2 else ((port + 0.5) / count - 0.5) * self.widths[box]

    def _start(self, number: int) -> tuple[float, float]:
        arrow = self.scene.arrows[number]
        x, y = self.layout.centres[arrow.tail]
        return x + self._port(arrow.tail, arrow.port), y + _height(self.scene.boxes[arrow.tail]) / 2

    def arrow(self, number: int) -> str:
        """The path of an arrow: straight within a rank, an S between two ranks."""
        head = self.scene.arrows[number].head
        rivals, (x, y) = self.entering[head], self.layout.centres[head]
        if len(rivals) > 1:
            spread = min(self.widths[head] - 24, 34.0 * (len(rivals) - 1))
            x += (rivals.index(number) / (len(rivals) - 1) - 0.5) * spread
        at = self._start(number)
        path = [f"M{at[0]:.1f} {at[1]:.1f}"]
        for i, point in enumerate([*self.layout.bends[number], (x, y - _height(self.scene.boxes[head]) / 2)]):
            if i % 2 == 1 or abs(point[0] - at[0]) < 0.5:
                path.append(f"L{point[0]:.1f} {point[1]:.1f}")
            else:
                pull = (point[1] - at[1]) * 0.55
                corners = ((at[0], at[1] + pull), (point[0], point[1] - pull), point)
                path.append("C" + " ".join(f"{cx:.1f} {cy:.1f}" for cx, cy in corners))
            at = point
        d = " ".join(path)
        return f'<path d="{d}" fill="none" stroke="#94a3b8" stroke-width="1.3" marker-end="url(#tip)"/>'

    def box(self, number: int) -> str:
        """A box with title, subtitle and tooltip; fused operators are filled with their family's colour."""
        box, width, centre = self.scene.boxes[number], self.widths[number], self.layout.centres[number]
        height = _height(box)
        end = box.kind in ("input", "output")
        fill, line, ink, soft = box.family.tint, box.family.strong, "#0f172a", "#475569"
        if end:
            fill, line, ink, soft = "#ffffff", "#94a3b8", "#334155", "#64748b"
        elif box.fused and box.kind == "op":
            fill, ink, soft = box.family.strong, "#ffffff", "#ffffff"
        dash = ' stroke-dasharray="4 3"' if end else ""
        lines = [(box.title, TITLE, ink, -3.0 if box.subtitle else 4.5, ' font-weight="600"')]
        lines += [(box.subtitle, SMALL, soft, 12.5, "")] if box.subtitle else []
        texts = "".join(
            f'<text x="{centre[0]:.1f}" y="{centre[1] + down:.1f}" font-size="{size}" fill="{colour}"'
            f'{weight} text-anchor="middle">{_text(text)}</text>'
            for text, size, colour, down, weight in lines
        )
        return (
            f'<g class="{box.kind}"><title>{_text(box.tooltip)}</title>'
            f'<rect x="{centre[0] - width / 2:.1f}" y="{centre[1] - height / 2:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="{height / 2 if end else 7.0:.1f}" fill="{fill}" stroke="{line}" '
            f'stroke-width="1.2"{dash}/>{texts}</g>'
        )

    def labels(self) -> Iterator[str]:
        """dtype and shape below each output, on the side to which its arrows do not turn."""
        for box, labels in self.said.items():
            for port, label in enumerate(labels):
                if not label:
                    continue
                arrows = self.leaving[box][port]
                x, y = self._start(arrows[0])
                turns = [
                    (self.layout.bends[i] or [self.layout.centres[self.scene.arrows[i].head]])[0][0] - x
                    for i in arrows
                ]
                width = text_width(label, SMALL)
                x += -8 - width if len(labels) == 1 and min(turns) > -1 and max(turns) > 1 else 6
                yield (
                    f'<rect x="{x - 2:.1f}" y="{y + 4.5:.1f}" width="{width + 4:.1f}" height="12.5" '
                    f'fill="#ffffff" fill-opacity="0.85"/><text x="{x:.1f}" y="{y + 14:.1f}" '
                    f'font-size="{SMALL}" fill="#64748b">{_text(label)}</text>'
                )


def _height(box: Box) -> float:
    return 42.0 if box.subtitle else 28.0


def _legend(scene: Scene) -> tuple[list[str], float]:
    families = {b.family.name: b.family for b in scene.boxes if b.kind in ("op", "module")}
    items = [(name, f.tint, f.strong) for name, f in sorted(families.items())]
    if any(b.fused and b.kind == "op" for b in scene.boxes):
        items.append(("filled: computes several source operators", "#334155", "#334155"))
    parts, x = [], MARGIN
    for name, fill, line in items:
        parts.append(
            f'<rect x="{x:.1f}" y="50" width="13" height="13" rx="3" fill="{fill}" stroke="{line}"/>'
            f'<text x="{x + 19:.1f}" y="60.5" font-size="11" fill="#475569">{_text(name)}</text>'
        )
        x += text_width(name, 11) + 40
    return parts, x - MARGIN


def _text(text: str) -> str:
    """Escaped, and without the control characters that XML forbids even when escaped."""
    return escape("".join(c if c >= " " or c in "\n\t" else "�" for c in text), quote=True)
