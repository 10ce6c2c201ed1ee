"""What the user says of a model's inputs: shapes and dimension ranges, applied to the graph or refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from ...compiler.errors import CompileError, InputError, OptionError, Problem
from ...compiler.options import InputSpec
from ...compiler.program import Dim, DimRange, TensorSpec, dim_of


def apply_inputs(model: ir.Model, specs: tuple[InputSpec, ...], place: str) -> None:
    """Fix the shapes of the inputs named by ``specs``; a size given to a symbol holds wherever it occurs.

    A spec for an input with a default value makes it a required input.
    Raises: InputError with every spec that names no input or contradicts the declaration.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    sizes: dict[str, Dim] = {}
    found: list[Problem] = []
    for spec in specs:
        where = f"{place}: input {spec.name!r}"
        value = inputs.get(spec.name)
        if value is None:
            offered = ", ".join(str(TensorSpec.of(v)) for v in model.graph.inputs) or "none"
            found.append(Problem(where, "is not an input of the model", f"it has {offered}"))
        elif spec.dtype is not None and value.dtype is not None and spec.dtype != value.dtype:
            fact = f"is declared {TensorSpec.of(value)}, not {spec.dtype.name.lower()}"
            found.append(Problem(where, fact, "give the declared dtype"))
        else:
            found += [Problem(where, fact, fix) for fact, fix in _bind(value, spec, sizes)]
    if found:
        raise InputError.of(found)
    for spec in specs:
        value = inputs[spec.name]
        if value.is_initializer():
            model.graph.initializers.pop(spec.name)
            value.const_value = None
        _merge(value, spec)
    substitute(model, sizes)


def _bind(value: ir.Value, spec: InputSpec, sizes: dict[str, Dim]) -> list[tuple[str, str]]:
    if value.shape is None:
        return []
    declared = TensorSpec.of(value)
    if len(value.shape) != len(spec.shape):
        fact = f"is declared {declared}, which has {len(value.shape)} dimensions, not {len(spec.shape)}"
        return [(fact, "give one size for each dimension")]
    wrong = []
    for axis, (old, new) in enumerate(zip(map(dim_of, value.shape), spec.shape, strict=True)):
        if isinstance(old, int) and new != old:
            wrong.append((f"is declared {declared}, so axis {axis} can't be {new}", f"give {old}"))
        elif isinstance(old, str) and new is not None and sizes.setdefault(old, new) != new:
            wrong.append(
                (f"gives {old} the size {new}, another input gives it {sizes[old]}", "give one size")
            )
    return wrong


def _merge(value: ir.Value, spec: InputSpec) -> None:
    if value.shape is None:
        value.shape = ir.Shape(list(spec.shape))
        return
    pairs = zip(value.shape, spec.shape, strict=True)
    value.shape = ir.Shape([old if isinstance(old, int) or new is None else new for old, new in pairs])


def substitute(model: ir.Model, sizes: Mapping[str, Dim]) -> None:
    """Replace dimension symbols by sizes or other symbols, in every shape of the model."""
    if not sizes:
        return
    for value in _values(model):
        if value.shape is not None and any(isinstance(d, ir.SymbolicDim) for d in value.shape):
            value.shape = ir.Shape([_substituted(dim_of(d), sizes) for d in value.shape])


def _substituted(dim: Dim, sizes: Mapping[str, Dim]) -> Dim:
    if not isinstance(dim, str):
        return dim
    if dim in sizes:
        return sizes[dim]
    if dim.isidentifier():
        return dim
    text = re.sub(r"[A-Za-z_]\w*", lambda name: str(sizes.get(name[0], name[0])), dim)
    if text == dim or ir.SymbolicDim(text).free_symbols():
        return text
    size = ir.SymbolicDim(text).evaluate({})
    return size if isinstance(size, int) else text


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        for node in graph:
            yield from node.outputs


def dim_ranges(model: ir.Model, dims: tuple[tuple[str, DimRange], ...]) -> dict[str, DimRange]:
    """The ranges by name; a range of one size becomes that size everywhere in the graph.

    Raises: OptionError with every name that no input dimension has.
    """
    known = input_symbols(model.graph)
    offered = f"it has {', '.join(known)}" if known else "all its dimensions are fixed"
    found = [
        Problem(f"--dim {name}", "no input has a dimension of this name", offered)
        for name, _ in dims
        if name not in known
    ]
    if found:
        error: CompileError = OptionError.of(found)
        raise error
    fixed: dict[str, Dim] = {n: r.minimum for n, r in dims if r.minimum == r.maximum}
    substitute(model, fixed)
    return {name: given for name, given in dims if name not in fixed}


def input_symbols(graph: ir.Graph) -> list[str]:
    """The named dimensions of the inputs, those of expressions (``past + sequence``) included."""
    names: list[str] = []
    for dim in (dim_of(d) for value in graph.inputs for d in value.shape or ()):
        if isinstance(dim, str):
            names += [dim] if dim.isidentifier() else sorted(ir.SymbolicDim(dim).free_symbols())
    return list(dict.fromkeys(names))


def name_dims(model: ir.Model) -> None:
    """Give every unnamed size of an input tensor a name, ``x_dim0``, so that it can have a range.

    A negative size stands for an unnamed one, as some exporters write it. A symbol that is neither a name nor
    an expression of names (``batch size``) becomes a name.
    """
    for value in model.graph.inputs:
        if value.shape is None or isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
            continue
        stem = _identifier(value.name or "input")
        sizes = enumerate(map(dim_of, value.shape))
        value.shape = ir.Shape([f"{stem}_dim{axis}" if _is_open(dim) else dim for axis, dim in sizes])
    symbols = {dim_of(d) for value in _values(model) for d in value.shape or ()}
    substitute(model, {s: _identifier(s) for s in symbols if isinstance(s, str) and not _is_expression(s)})


def _is_open(dim: Dim) -> bool:
    return dim is None or (isinstance(dim, int) and dim < 0)


def _is_expression(symbol: str) -> bool:
    if symbol.isidentifier():
        return True
    try:
        ir.SymbolicDim(symbol).free_symbols()
    except Exception:  # the parser has no error type of its own
        return False
    return True


def _identifier(text: str) -> str:
    name = re.sub(r"\W", "_", text)
    return name if name.isidentifier() else f"dim_{name}"
