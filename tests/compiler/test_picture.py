"""The picture of a graph: complete, valid, stable, and laid out without overlaps."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.provenance import Source, set_sources
from miaotui.compiler.picture import NODE_LIMIT, draw
from miaotui.compiler.picture.columns import columns
from miaotui.compiler.picture.layout import COLUMN_GAP, Extent, layered
from miaotui.compiler.picture.scene import operators, subtitle

SVG = "{http://www.w3.org/2000/svg}"


def value(
    name: str, shape: tuple[int | str, ...] = ("batch", 4), dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def weight(name: str) -> ir.Value:
    tensor = ir.tensor(np.zeros(4, np.float32), name=name)
    return ir.Value(
        name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((4,)), const_value=tensor
    )


def node(
    op: str,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    *layers: str,
    attributes: Sequence[ir.Attr] = (),
) -> ir.Node:
    made = ir.Node("", op, inputs, attributes, outputs=outputs, name=f"{op}_{outputs[0].name}")
    set_sources(made, [Source("torch", layer, "aten.op") for layer in layers])
    return made


def residual_graph(layers: int = 2) -> ir.Graph:
    """x → layers of (MatMul, Relu, Add residual) → y, with a weight each."""
    x = value("x")
    nodes, weights, h = [], [], x
    for i in range(layers):
        w, a, b, c = weight(f"w{i}"), value(f"a{i}"), value(f"b{i}"), value(f"c{i}")
        weights.append(w)
        nodes += [
            node("MatMul", [h, w], [a], f"blocks.{i}.fc"),
            node("Relu", [a], [b], f"blocks.{i}.act"),
            node("Add", [h, b], [c], f"blocks.{i}", f"blocks.{i}.drop"),
        ]
        h = c
    return ir.Graph([x], [h], nodes=nodes, initializers=weights, opset_imports={"": 23}, name="net")


def boxes(svg: str, kind: str) -> list[ET.Element]:
    return [g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == kind]


def line(box: ET.Element, number: int) -> str:
    """A box's title (0) or subtitle (1)."""
    return box.findall(f"{SVG}text")[number].text or ""


def titles(svg: str, kind: str) -> list[str]:
    return [line(box, 0) for box in boxes(svg, kind)]


def test_draws_every_operator_input_and_output_but_no_weight() -> None:
    svg = draw(residual_graph())
    assert titles(svg, "op") == ["MatMul", "Relu", "Add"] * 2
    assert titles(svg, "input") == ["x"]
    assert titles(svg, "output") == ["c1"]


def test_module_shows_its_nodes_and_what_crosses_its_border() -> None:
    svg = draw(residual_graph(3), "blocks.1")
    assert titles(svg, "op") == ["MatMul", "Relu", "Add"]
    assert titles(svg, "input") == ["c0"]
    assert titles(svg, "output") == ["c1"]


def test_module_is_a_path_not_a_prefix_of_names() -> None:
    graph = residual_graph(11)
    assert len(boxes(draw(graph, "blocks.1"), "op")) == 3


def test_unknown_module_is_an_error_that_offers_near_ones() -> None:
    with pytest.raises(OptionError, match=r"blocks\.0\.fc"):
        draw(residual_graph(), "blocks.0.fx")


def test_same_graph_gives_same_text() -> None:
    assert draw(residual_graph(5)) == draw(residual_graph(5))


def test_tooltip_names_every_source_of_a_fused_node() -> None:
    [box] = [g for g in boxes(draw(residual_graph(1)), "op") if line(g, 0) == "Add"]
    tip = box.findtext(f"{SVG}title", "")
    assert "from torch blocks.0 (aten.op)" in tip
    assert "from torch blocks.0.drop (aten.op)" in tip


def test_fused_nodes_are_filled_and_plain_ones_tinted() -> None:
    fills = {line(g, 0): g.findall(f"{SVG}rect")[0].get("fill") for g in boxes(draw(residual_graph(1)), "op")}
    assert fills["Add"] != operators(residual_graph(1)).boxes[1].family.tint
    assert fills["Add"] == operators(residual_graph(1)).boxes[-2].family.strong


def test_labels_tell_dtype_and_shape_once_per_value() -> None:
    svg = draw(residual_graph(1))
    texts = [t.text for t in ET.fromstring(svg).iter(f"{SVG}text")]
    assert texts.count("float32[batch, 4]") == 4  # x and c0 in their boxes, a0 and b0 below theirs


@pytest.mark.parametrize("name", ['<script>"x"&', "a\x00b\x1b", "层/卷积", "]]>", "y" * 500])
def test_any_name_gives_valid_xml(name: str) -> None:
    x, y = value(name), value("out")
    graph = ir.Graph([x], [y], nodes=[node("Relu", [x], [y], name)], opset_imports={"": 23}, name=name)
    assert titles(draw(graph), "op") == ["Relu"]


def test_large_graph_is_drawn_by_module() -> None:
    graph = residual_graph(NODE_LIMIT // 3 + 1)
    svg = draw(graph)
    assert not boxes(svg, "op")
    modules = titles(svg, "module")
    assert 1 < len(modules) <= NODE_LIMIT
    told = sum(int(line(g, 1).partition(":")[0]) for g in boxes(svg, "module"))
    assert told == len(graph)


def test_large_graph_without_modules_is_still_drawn() -> None:
    nodes, h = [], value("x")
    x = h
    for i in range(NODE_LIMIT + 1):
        y = value(f"v{i}")
        nodes.append(node("Relu", [h], [y]))
        h = y
    svg = draw(ir.Graph([x], [h], nodes=nodes, opset_imports={"": 23}, name="chain"))
    assert len(boxes(svg, "module")) == 1


def test_modules_that_feed_each_other_share_a_box() -> None:
    x, a, b, c = (value(n) for n in "xabc")
    nodes = [
        node("Relu", [x], [a], "one.p"),
        node("Tanh", [a], [b], "two.q"),
        node("Relu", [b], [c], "one.p"),
    ]
    filler, h = [], c
    for i in range(NODE_LIMIT):
        y = value(f"f{i}")
        filler.append(node("Relu", [h], [y], f"rest.{i}"))
        h = y
    svg = draw(ir.Graph([x], [h], nodes=[*nodes, *filler], opset_imports={"": 23}, name="loop"))
    assert any("{one, two}" in t for t in titles(svg, "module"))


def test_control_flow_reads_what_its_body_captures() -> None:
    x, cond, y, inner = value("x"), value("c", (), ir.DataType.BOOL), value("y"), value("inner")
    body = ir.Graph([], [inner], nodes=[ir.Node("", "Relu", [x], outputs=[inner])], name="body")
    other_out = value("other")
    other = ir.Graph([], [other_out], nodes=[ir.Node("", "Tanh", [x], outputs=[other_out])], name="other")
    branch = node(
        "If", [cond], [y], attributes=[ir.AttrGraph("then_branch", body), ir.AttrGraph("else_branch", other)]
    )
    graph = ir.Graph([x, cond], [y], nodes=[branch], opset_imports={"": 23}, name="g")
    scene = operators(graph)
    assert {(a.tail, a.head) for a in scene.arrows} >= {(0, 2), (1, 2)}


def test_subtitle_shares_the_common_path_and_a_parent_stands_for_its_children() -> None:
    def of(*layers: str) -> str:
        return subtitle([Source("torch", layer) for layer in layers])

    assert of("a.b.q", "a.b.k", "a.b.v") == "a.b.{q, k, v}"
    assert of("a.b", "a.b.drop") == "a.b"
    assert (
        of("encoder.layer.11.feed_forward.intermediate.dense") == "…layer.11.feed_forward.intermediate.dense"
    )
    assert of("a.1", "a.2", "a.3", "a.4", "a.5") == "a.{1, 2, 3, +2}"


def test_boxes_of_a_rank_do_not_overlap_and_arrows_point_down() -> None:
    rng = np.random.default_rng(3)
    extents = [Extent(rng.uniform(10, 60), rng.uniform(10, 60), 30) for _ in range(60)]
    arrows = [(int(rng.integers(0, i)), i, 0) for i in range(1, 60) for _ in range(rng.integers(1, 4))]
    layout = layered(extents, arrows)
    rows: dict[float, list[tuple[float, float]]] = {}
    for number, (x, y) in enumerate(layout.centres):
        rows.setdefault(y, []).append((x - extents[number].left, x + extents[number].right))
    for row in rows.values():
        spans = sorted(row)
        assert all(b[0] - a[1] >= COLUMN_GAP - 1e-6 for a, b in pairwise(spans))
    for (tail, head, _), bends in zip(arrows, layout.bends, strict=True):
        ys = [layout.centres[tail][1], *(y for _, y in bends), layout.centres[head][1]]
        assert ys == sorted(ys)


def test_long_arrow_is_straight_between_its_ends() -> None:
    chain = [(i, i + 1, 0) for i in range(6)]
    layout = layered([Extent(40, 40, 30)] * 7, [*chain, (0, 6, 0)])
    assert len({round(x, 6) for x, _ in layout.bends[-1]}) == 1


def test_single_column_is_aligned() -> None:
    assert len(set(columns([[0], [1], [2]], {1: [0], 2: [1]}, {0: [1], 1: [2]}, [(5, 5)] * 3, 3, 10))) == 1


def test_module_takes_what_it_has_a_good_part_in() -> None:
    x, y, z = value("x"), value("y"), value("z")
    qkv = node("MatMul", [x], [y], "a.q", "a.k", "a.v")
    set_sources(
        other := node("Relu", [y], [z]),
        [Source("torch", f"b.{i}") for i in range(8)] + [Source("torch", "a.q")],
    )
    graph = ir.Graph([x], [z], nodes=[qkv, other], opset_imports={"": 23}, name="g")
    assert titles(draw(graph, "a.v"), "op") == ["MatMul"]
    assert titles(draw(graph, "a.q"), "op") == ["MatMul"]
