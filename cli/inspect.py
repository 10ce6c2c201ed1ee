"""``miaotui inspect``: what an executable folder or a model holds, as tables, text, JSON or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import arguments as a
from .console import Format, print_json, stdout

if TYPE_CHECKING:
    import onnx_ir as ir

    from .described import Described

Source = Annotated[
    str, typer.Argument(metavar="DIR|MODEL", help="Executable folder, or a model as for compile.")
]
Check = Annotated[bool, typer.Option("--check", help="Compare the hash of every file of the folder.")]
Node = Annotated[
    str | None, typer.Option("--node", metavar="NAME", help="Where a node, value or source layer comes from.")
]
Ops = Annotated[
    bool, typer.Option("--ops", help="Count every operator, not just the dozen that changed most.")
]
PrintIR = Annotated[bool, typer.Option("--ir", help="Print the graph as text.")]
Picture = Annotated[Path | None, typer.Option("--picture", metavar="FILE.svg", help="Draw the graph.")]
Module = Annotated[
    str, typer.Option("--module", metavar="PATH", help="Draw only what comes from this source module.")
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Variant of the folder.", show_default="the one that runs")
]
Entry = Annotated[str, typer.Option("--entry", help="Entry function.")]
Rank = Annotated[
    str, typer.Option("--rank", metavar="STAGE.SHARD", help="Whose graph it is, in a partitioned folder.")
]


def inspect(
    model: Source,
    check: Check = False,
    node: Node = None,
    ops: Ops = False,
    print_ir: PrintIR = False,
    picture: Picture = None,
    module: Module = "",
    variant: Variant = None,
    entry: Entry = "main",
    rank: Rank = "0.0",
    output_format: a.FormatOption = Format.table,
    verbose: a.Verbose = False,
) -> None:
    """Show entries, signatures, variants, sizes and operators; explain a node; draw the graph."""
    from .described import describe
    from .progress import watched

    with watched(quiet=True):
        described = describe(model, variant=variant, entry=entry, check=check, rank=rank)
    if picture is not None:
        from ..compiler.picture import draw

        picture.write_text(draw(described.graph(), module), encoding="utf-8")
        if not (node or print_ir) and output_format is Format.table:
            stdout().print(f"drew {picture}", soft_wrap=True)
            return
    found = None if node is None else _node(described, node)
    if output_format is Format.json:
        print_json({**described.summary(), **({} if found is None else {"node": _explained(found)})})
    elif found is not None:
        _show_node(_explained(found))
    elif print_ir:
        from ..compiler.ir.printer import print_graph

        stdout().print(print_graph(described.graph(), sources=verbose), soft_wrap=True, end="")
    else:
        _show(described.summary(), everything=ops or verbose)


def _node(described: Described, name: str) -> ir.Node:
    """The node called ``name``, or the one that computes the value or the source layer of that name.

    Raises: OptionError if there is none.
    """
    from difflib import get_close_matches

    from ..compiler.errors import OptionError

    nodes = {n.name or "": n for n in described.graph().all_nodes()}
    values = {v.name or "": n for n in nodes.values() for v in n.outputs}
    layers = {layer: values[value] for layer, value in described.layers().items() if value in values}
    found = nodes.get(name) or values.get(name) or layers.get(name)
    if found is not None:
        return found
    if name in described.layers():
        fact = f"layer {name!r} is computed inside a larger operator"
        raise OptionError("--node", fact, f"--picture out.svg --module {name} shows which")
    near = get_close_matches(name, [*nodes, *values, *layers], n=3) or list(nodes)[:3]
    raise OptionError("--node", f"no node, value or layer {name!r}", f"try {', '.join(near)}; --ir lists all")


def _explained(node: ir.Node) -> dict[str, Any]:
    from dataclasses import asdict

    from ..compiler.ir.provenance import passes, sources
    from ..compiler.picture.scene import value_label

    return {
        "name": node.name,
        "operator": f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
        "inputs": [{"name": v.name, "type": value_label(v)} if v is not None else None for v in node.inputs],
        "outputs": [{"name": v.name, "type": value_label(v)} for v in node.outputs],
        "sources": [{**asdict(s), "text": str(s)} for s in sources(node)],
        "passes": list(passes(node)),
    }


def _show_node(node: dict[str, Any]) -> None:
    from .tables import facts

    def typed(values: list[dict[str, str] | None]) -> str:
        return "\n".join("–" if v is None else f"{v['name']}: {v['type']}" for v in values)

    facts(
        stdout(),
        [
            ("node", node["name"]),
            ("operator", node["operator"]),
            ("inputs", typed(node["inputs"])),
            ("outputs", typed(node["outputs"])),
            ("from", "\n".join(s["text"] for s in node["sources"]) or "nothing recorded"),
            ("made by", "\n".join(node["passes"]) or "as imported"),
        ],
    )


def _show(summary: dict[str, Any], *, everything: bool) -> None:
    from . import tables
    from .partition import show_partition

    console = stdout()
    state = {name for pair in (summary["decoding"] or {}).get("state", ()) for name in pair.values()}
    tables.facts(
        console,
        [
            ("name", summary["name"]),
            ("source", " ".join(summary["source"].values())),
            ("created", summary["created"]),
            ("proof", _proved(summary["certificate"])),
            ("faithful", _proved((summary["certificate"] or {}).get("faithful"))),
            *(
                (f"{entry}: {way}", _signature(e[f"{way}puts"], state))
                for entry, e in summary["entries"].items()
                for way in ("in", "out")
            ),
            ("cache", _cache(summary["decoding"])),
            ("sizes", ", ".join(f"{name} {span}" for name, span in summary["dims"].items())),
            ("checked", None if summary["checked"] is None else f"{summary['checked']} files are as written"),
        ],
    )
    if summary["variants"]:
        made = tables.table("variant", "role", "target", "backend", ">nodes", ">size")
        for name, v in summary["variants"].items():
            star = "*" if name == summary["default"] else ""
            size = tables.megabytes(v["bytes"])
            made.add_row(name + star, v["role"], v["target"], v["backend"], str(v["nodes"]), size)
        console.print()
        tables.put(console, made)
        sizes = ", ".join(f"{name} {tables.megabytes(size)}" for name, size in summary["sizes"].items())
        console.print(f"* runs unless another is named; on disk: {sizes}", style="dim")
    _show_kernels(summary)
    console.print()
    show_partition(console, summary["partition"])
    if summary["kind"] == "model":
        tables.put(console, tables.counted(summary["ops"]["before"], everything=everything))
    else:
        counts = summary["ops"]
        tables.put(console, tables.operators(counts["before"], counts["after"], everything=everything))


def _show_kernels(summary: dict[str, Any]) -> None:
    """Kernels for a GPU: registers of a thread, shared memory of a block in bytes, what of registers spilled.

    ``dynamic`` is the shared memory that the host asks for at launch, beside the static.
    """
    import json

    from . import tables

    for name, variant in summary["variants"].items():
        found = json.loads(variant["settings"].get("kernels", "[]"))
        if not found:
            continue
        made = tables.table("kernel", "arch", ">registers", ">shared", ">dynamic", ">spilled", title=name)
        for kernel in found:
            sizes = (kernel[key] for key in ("registers", "shared", "dynamic", "spilled"))
            made.add_row(kernel["name"], kernel["arch"], *("–" if n is None else str(n) for n in sizes))
        stdout().print()
        tables.put(stdout(), made)


def _signature(specs: list[dict[str, Any]], state: set[str]) -> str:
    """One line a tensor; the tensors of a cache, which are many and alike, are told by ``_cache``."""
    return "\n".join(spec["text"] for spec in specs if spec["name"] not in state)


def _cache(decoding: dict[str, Any] | None) -> str | None:
    if decoding is None:
        return None
    context = decoding["context"]
    bound = "without bound" if context is None else f"up to {context} positions"
    return f"{len(decoding['state'])} tensors of {decoding['entry']!r}, {bound}"


def _proved(proof: dict[str, Any] | None) -> str | None:
    if proof is None:
        return None
    verdict = "equal" if proof["ok"] else "NOT equal"
    name = "scaled error" if proof["metric"] == "scaled" else "mean KL"
    bound = f"{name} {proof['error']:.2g}, tolerance {proof['tolerance']:.2g}"
    return f"{verdict} to {proof['reference']}: {bound}"
