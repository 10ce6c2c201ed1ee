"""A copy of a model that gives inner values as outputs too, to compare it layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def tapped(data: bytes, names: Sequence[str]) -> bytes:
    """``data`` with the values in ``names`` among the outputs; names that no node computes are left out."""
    import onnx

    model = onnx.load_model_from_string(data)
    have = {output.name for output in model.graph.output}
    types = {info.name: info for info in model.graph.value_info}
    there = set(_computed(model.graph))
    for name in dict.fromkeys(names):
        if name in there and name not in have:
            # Without a recorded type onnxruntime infers it.
            model.graph.output.append(types.get(name) or onnx.ValueInfoProto(name=name))
    tapped_data: bytes = model.SerializeToString()
    return tapped_data


def _computed(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from filter(None, node.output)


def computed(data: bytes) -> list[str]:
    """Names of all values that the model's main graph computes, in execution order."""
    import onnx

    return list(_computed(onnx.load_model_from_string(data).graph))


AFTER = "miaotui.lengths_after"
"""Output of a decoder that runs over a device's own memory: how many tokens each row holds after one more."""


def with_lengths_after(data: bytes, lengths: str) -> bytes:
    """``data`` with the output ``AFTER``, the input ``lengths`` plus one: the next step's, without a copy."""
    import numpy as np
    import onnx

    model = onnx.load_model_from_string(data)
    one = onnx.numpy_helper.from_array(np.ones(1, np.int64), f"{AFTER}.one")
    model.graph.initializer.append(one)
    model.graph.node.append(onnx.helper.make_node("Add", [lengths, one.name], [AFTER], name=AFTER))
    model.graph.output.append(onnx.helper.make_tensor_value_info(AFTER, onnx.TensorProto.INT64, None))
    made: bytes = model.SerializeToString()
    return made
