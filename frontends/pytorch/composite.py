"""Translations of composite operators, and leaving out torch's decomposition where nothing needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_CHECKS = frozenset({
    "aten::sym_constrain_range_for_size", "aten::_assert_async", "aten::_assert_async.msg",
    "aten::_assert_scalar", "aten::_assert_tensor_metadata",
})  # fmt: skip
"""Operators that the exporter drops."""


def composite_translations() -> dict[Any, Callable[..., Any]]:
    """Operators of nearly every transformer that torch's exporter knows only in parts."""
    import torch

    aten = torch.ops.aten
    return {
        aten.to.dtype: lambda x, dtype, non_blocking=False, copy=False, memory_format=None: _cast(x, dtype),
        aten.to.dtype_layout: _to_dtype_layout,
        aten.to.device: _to_device,
        aten.__and__.Tensor: lambda x, other: _logical("And", x, other),
        aten.__or__.Tensor: lambda x, other: _logical("Or", x, other),
        aten.diff.default: diff,
        aten.cumsum.default: cumsum,
    }


def cumsum(x: Any, dim: int, dtype: Any = None) -> Any:
    """``aten.cumsum``, of flags and integers as int64."""
    from onnxscript import ir
    from onnxscript import opset23 as op

    counts = x.dtype == ir.DataType.BOOL or x.dtype.is_integer()
    x = _cast(x, dtype if dtype is not None else ir.DataType.INT64 if counts else x.dtype)
    axis: Any = op.Constant(value_int=dim)
    return op.CumSum(x, axis)


def diff(x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    """``aten.diff``: neighbours along ``dim`` subtracted, ``n`` times."""
    from onnxscript import opset23 as op

    parts = [part for part in (prepend, x, append) if part is not None]
    made: Any = op.Concat(*parts, axis=dim) if len(parts) > 1 else x
    bounds: list[Any] = [op.Constant(value_ints=[i]) for i in (0, 1, -1, 2**63 - 1, dim)]
    zero, one, last, end, axis = bounds
    for _ in range(n):
        made = op.Sub(op.Slice(made, one, end, axis), op.Slice(made, zero, last, axis))
    return made


def _to_dtype_layout(
    x: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
    non_blocking: bool = False, copy: bool = False, memory_format: Any = None,
) -> Any:  # fmt: skip
    return _cast(x, dtype)


def _to_device(
    x: Any, device: Any, dtype: Any, non_blocking: bool = False, copy: bool = False, memory_format: Any = None
) -> Any:
    return _cast(x, dtype)


def _cast(x: Any, dtype: Any) -> Any:
    from onnxscript import opset23 as op

    return op.Identity(x) if dtype is None or x.dtype == dtype else op.Cast(x, to=int(dtype))


def _logical(name: str, x: Any, other: Any) -> Any:
    from onnxscript import ir
    from onnxscript import opset23 as op

    kind = name if x.dtype == ir.DataType.BOOL else f"Bitwise{name}"
    return getattr(op, kind)(x, other)


@contextmanager
def decomposition_where_needed() -> Iterator[None]:
    """Let torch's exporter decompose a program only if an operator mutates or has no translation, and
    insert type promotion only if operands differ in dtype.

    Both trace the whole program again, which takes as long as exporting it. Without the first, the exporter
    edits the program it is given.
    """
    from torch.onnx._internal.exporter import _fx_passes

    decompose, promote = _fx_passes.decompose_with_registry, _fx_passes.insert_type_promotion_nodes

    def decompose_if_needed(program: Any, registry: Any) -> Any:
        if not _translatable(program, registry):
            return decompose(program, registry)
        _drop_conversions(program)
        return program

    def promote_if_needed(module: Any) -> None:
        if _promotes(module):
            promote(module)

    _fx_passes.decompose_with_registry = decompose_if_needed
    _fx_passes.insert_type_promotion_nodes = promote_if_needed
    try:
        yield
    finally:
        _fx_passes.decompose_with_registry = decompose
        _fx_passes.insert_type_promotion_nodes = promote


def _translatable(program: Any, registry: Any) -> bool:
    import torch

    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            if node.op != "call_function":
                continue
            operator = node.target
            if isinstance(operator, torch._ops.HigherOrderOperator):
                return False
            if not isinstance(operator, torch._ops.OpOverload):
                continue  # arithmetic on sizes
            known = operator.name() in _CHECKS or registry.is_registered(operator)
            if operator._schema.is_mutable or not known:
                return False
    return True


def _promotes(graph_module: Any) -> bool:
    """Whether torch's rules convert an operand of any node, other than a number beside floats."""
    import torch
    from torch.onnx._internal.fx.passes import type_promotion

    table, own = type_promotion.TypePromotionTable(), composite_translations().keys()
    for module in graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            rule = type_promotion.get_type_promotion_rule(node, table)
            if node.op != "call_function" or rule is None or node.target in own:
                continue
            args = torch.fx.map_arg(node.args, lambda other: other.meta["val"])
            kwargs = torch.fx.map_arg(node.kwargs, lambda other: other.meta["val"])
            wanted = rule.preview_type_promotion(args, kwargs)
            pairs = [(args[i], dtype) for i, dtype in wanted.args_dtypes.items() if i < len(args)]
            pairs += [(kwargs[k], dtype) for k, dtype in wanted.kwargs_dtypes.items() if k in kwargs]
            if not all(_has(operand, dtype) for operand, dtype in pairs):
                return True
    return False


def _has(operand: Any, dtype: Any) -> bool:
    import torch

    if isinstance(operand, torch.Tensor):
        return bool(operand.dtype == dtype)
    if isinstance(operand, tuple | list):
        return all(_has(item, dtype) for item in operand)
    if operand is None:
        return True
    integral = type(operand) is int and not dtype.is_complex and dtype != torch.bool
    return integral or (type(operand) is float and bool(dtype.is_floating_point))


def _drop_conversions(program: Any) -> None:
    """Remove conversions to the dtype a tensor has: what else reads their result reads the tensor itself."""
    import torch

    aten = torch.ops.aten
    kinds = {aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.contiguous.default}
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in kinds:
            continue
        if any(user.op == "output" for user in node.users):
            continue  # the signature names it
        source = node.args[0]
        before, after = source.meta.get("val"), node.meta.get("val")
        if before is not None and after is not None and before.dtype == after.dtype:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
