"""What a picture shows: boxes and arrows taken from a graph, from one module of it, or from its modules."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from ..errors import OptionError
from ..ir.provenance import Source, sources
from ..program import TensorSpec, dim_of
from .families import OTHER, Family, family_of

NODE_LIMIT = 400
"""Greatest number of operators drawn one by one; larger graphs are drawn by module."""

MODULE_LIMIT = 200

SHARE = 0.25
"""Least part of a node's sources that puts it into a module: one of query, key and value is more."""


@dataclass(slots=True)
class Box:
    """One rectangle: ``fused`` says that it computes several source operators; ``tooltip`` is plain text."""

    kind: Literal["op", "input", "output", "module"]
    title: str
    subtitle: str = ""
    tooltip: str = ""
    family: Family = OTHER
    fused: bool = False


@dataclass(frozen=True, slots=True)
class Arrow:
    """A value on its way from box ``tail`` (its output number ``port``) to box ``head``."""

    tail: int
    head: int
    port: int
    label: str


@dataclass(slots=True)
class Scene:
    """Boxes, arrows and what stands above them."""

    title: str
    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)


def operators(graph: ir.Graph | ir.Function, module: str = "") -> Scene:
    """One box per node whose sources lie under ``module``. Raises: OptionError if there is none."""
    nodes = [n for n in graph if under(module, sources(n))]
    if not nodes:
        raise OptionError("--module", f"no node comes from {module!r}", _offer(graph, module))
    noun = "operator" if len(nodes) == 1 else "operators"
    scene = Scene(" · ".join(filter(None, (graph.name or "graph", module, f"{len(nodes)} {noun}"))))
    boxes = [_operator(node, module) for node in nodes]
    _connect(scene, graph, {node: i for i, node in enumerate(nodes)}, boxes)
    return scene


def modules(graph: ir.Graph | ir.Function, module: str = "") -> Scene:
    """One box per source module, at the deepest level that leaves no more than MODULE_LIMIT boxes."""
    import networkx as nx

    nodes = [n for n in graph if under(module, sources(n))]
    groups = _groups(nodes, module)
    number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    quotient = nx.DiGraph()
    quotient.add_nodes_from(number.values())
    place = {node: number[group] for node, group in zip(nodes, groups, strict=True)}
    for node in nodes:
        for value in _read(node):
            producer = value.producer()
            if producer is not None and producer in place:
                quotient.add_edge(place[producer], place[node])
    # Modules that feed each other (a model's masks and its layers) can't be ordered: they share a box.
    parts = sorted((sorted(part) for part in nx.strongly_connected_components(quotient)), key=lambda p: p[0])
    part_of = {group: i for i, part in enumerate(parts) for group in part}
    names = list(number)
    boxes = []
    for part in parts:
        inside = [n for n in nodes if place[n] in part]
        boxes.append(_module([names[group] for group in part], inside, module))
    scene = Scene(
        f"{graph.name or 'graph'}{f' · {module}' if module else ''} · {len(nodes)} operators by module"
    )
    _connect(scene, graph, {node: part_of[place[node]] for node in nodes}, boxes)
    return scene


def under(module: str, found: Sequence[Source]) -> bool:
    """Whether a good part of the sources are ``module`` or lie in it (``""`` holds everything).

    One source of many is not enough: what layers share, a mask, ends up among the sources of the last
    that reads it.
    """
    module = module.rstrip("./")
    inside = (module + ".", module + "/")
    count = sum(s.layer == module or s.layer.startswith(inside) for s in found)
    return not module or (count > 0 and count >= SHARE * len(found))


def value_label(value: ir.Value) -> str:
    """dtype and shape of a value: ``float32[1, seq, 384]``."""
    if value.dtype is None:
        return ""
    return str(TensorSpec("", value.dtype, None if value.shape is None else tuple(map(dim_of, value.shape))))[
        2:
    ]


def _connect(
    scene: Scene, graph: ir.Graph | ir.Function, place: Mapping[ir.Node, int], boxes: Sequence[Box]
) -> None:
    """Fill the scene: boxes of ``place``, what enters them from outside, what leaves them, and the arrows."""
    outer: dict[ir.Value, None] = {}
    for node in place:
        for value in _read(node):
            if value.producer() not in place and not value.is_initializer():
                outer[value] = None
    enter = list(outer)
    first = len(enter)
    scene.boxes = [_end("input", value) for value in enter]
    scene.boxes += boxes
    position = {value: i for i, value in enumerate(enter)}
    ports: dict[ir.Value, tuple[int, int]] = {value: (i, 0) for value, i in position.items()}
    used: dict[int, int] = {}
    drawn: dict[tuple[int, int, int], None] = {}
    for node, box in place.items():
        for value in _read(node):
            producer = value.producer()
            if producer is not None and place.get(producer) == box:
                continue
            if value not in ports:
                if producer is None or producer not in place:
                    continue
                tail = first + place[producer]
                ports[value] = (tail, used.setdefault(tail, 0))
                used[tail] += 1
            tail, port = ports[value]
            if (tail, first + box, port) not in drawn:
                drawn[tail, first + box, port] = None
                scene.arrows.append(
                    Arrow(tail, first + box, port, "" if tail < first else value_label(value))
                )
    leaving = set(graph.outputs) | {v for node in graph if node not in place for v in _read(node)}
    for node, box in place.items():
        for value in node.outputs:
            if value not in leaving:
                continue
            tail = first + box
            if value not in ports:
                ports[value] = (tail, used.setdefault(tail, 0))
                used[tail] += 1
            scene.boxes.append(
                Box("output", value.name or "?", value_label(value), f"{value.name}: {value_label(value)}")
            )
            scene.arrows.append(Arrow(tail, len(scene.boxes) - 1, ports[value][1], ""))


def _end(kind: Literal["input", "output"], value: ir.Value) -> Box:
    label = value_label(value)
    return Box(kind, _short(value.name or "?", 40), label, f"{value.name}: {label}")


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """Values a node reads, those captured by its subgraphs included."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.is_ref() or attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        bodies = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
        for body in bodies:
            for inner in body.all_nodes():
                yield from (v for v in inner.inputs if v is not None and v.graph is node.graph)
            yield from (v for v in body.outputs if v.graph is node.graph)


def _operator(node: ir.Node, module: str) -> Box:
    found = sources(node)
    fused = len(found) > 1
    lines = [f"{node.domain + '.' if node.domain else ''}{node.op_type} {node.name or ''}".rstrip()]
    lines += [f"in {i}: {_operand(v)}" for i, v in enumerate(node.inputs) if v is not None]
    lines += [f"out {i}: {_operand(v)}" for i, v in enumerate(node.outputs) if v.name]
    lines += [f"{a.name} = {_short(str(a.value), 80)}" for a in node.attributes.values() if _plain(a)]
    lines += [f"from {s}" for s in found]
    return Box("op", node.op_type, subtitle(found, module), "\n".join(lines), family_of(node.op_type), fused)


def _plain(attribute: ir.Attr) -> bool:
    kind = ir.AttributeType
    plain = (kind.INT, kind.FLOAT, kind.STRING, kind.INTS, kind.FLOATS, kind.STRINGS)
    return not attribute.is_ref() and attribute.type in plain


def _operand(value: ir.Value) -> str:
    kind = "weight " if value.is_initializer() else ""
    return f"{kind}{value.name}: {value_label(value)}"


def subtitle(found: Sequence[Source], module: str = "") -> str:
    """The layers of a node's sources in one line, without the ``module`` the picture shows anyway.

    >>> subtitle([Source("torch", "encoder.0.q"), Source("torch", "encoder.0.k")], "encoder")
    '0.{q, k}'
    """
    layers = list(dict.fromkeys(s.layer.replace("/", ".").strip(".") for s in found if s.layer))
    if not layers:
        return _short(", ".join(dict.fromkeys(s.op for s in found if s.op)), 40)
    stem = module.replace("/", ".").strip(".")
    parts = [layer.split(".") for layer in layers]
    if stem and all((layer + ".").startswith(stem + ".") for layer in layers):
        parts = [p[len(stem.split(".")) :] for p in parts]
    common = []
    while len(parts) > 1 and all(parts) and len({p[0] for p in parts}) == 1:
        common.append(parts[0][0])
        parts = [p[1:] for p in parts]
    leaves = (
        list(dict.fromkeys(".".join(p) for p in parts)) if all(parts) else []
    )  # a parent stands for its children
    more = f", +{len(leaves) - 3}" if len(leaves) > 3 else ""
    tail = leaves[0] if len(leaves) == 1 else f"{{{', '.join(leaves[:3])}{more}}}" if leaves else ""
    return _short(".".join(filter(None, (".".join(common), tail))), 44)


def _short(text: str, limit: int) -> str:
    """The end of a long text: the last parts of a module path say most; cut between parts if one is near."""
    if len(text) <= limit:
        return text
    end = text[1 - limit :]
    head, dot, rest = end.partition(".")
    return "…" + (rest if dot and len(head) < limit // 3 else end)


def _groups(nodes: Sequence[ir.Node], module: str) -> list[str]:
    """A module path per node: the deepest cut of the paths that leaves few enough different ones."""
    paths = []
    previous: list[str] = []
    for node in nodes:
        layer = next((s.layer for s in sources(node) if s.layer and under(module, [s])), "")
        previous = layer.replace("/", ".").strip(".").split(".") if layer else previous
        paths.append(previous)  # nodes without a source go with the node before them
    deepest = max(map(len, paths), default=1)
    for depth in range(deepest, 0, -1):
        groups = [".".join(path[:depth]) for path in paths]
        if len(set(groups)) <= MODULE_LIMIT:
            return groups
    return [""] * len(paths)


def _module(names: Sequence[str], nodes: Sequence[ir.Node], module: str) -> Box:
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (family_of(item[0]) is OTHER, -item[1], item[0]))
    weight: dict[str, int] = {}
    for op, count in ranked:
        name = family_of(op).name
        weight[name] = weight.get(name, 0) + count * (0 if name in ("data movement", OTHER.name) else 1)
    main = max(ranked, key=lambda item: (weight[family_of(item[0]).name], item[1]))[0]
    ops = ", ".join(op if n == 1 else f"{n} {op}" for op, n in ranked[:3]) + (
        ", …" if len(ranked) > 3 else ""
    )
    title = subtitle([Source("", name) for name in names], module) or "(outside modules)"
    everything = [f"{n} {op}" for op, n in ranked]
    tooltip = "\n".join([*names, f"{len(nodes)} operators", *everything])
    return Box("module", title, f"{len(nodes)}: {ops}", tooltip, family_of(main), len(nodes) > 1)


def _offer(graph: Iterable[ir.Node], module: str) -> str:
    layers = dict.fromkeys(s.layer for node in graph for s in sources(node) if s.layer)
    near = difflib.get_close_matches(module, layers, n=3, cutoff=0.5)
    shown = near or list(dict.fromkeys(layer.split(".")[0] for layer in layers))[:8]
    return f"try {', '.join(shown)}" if shown else "this model names no modules: leave --module out"
