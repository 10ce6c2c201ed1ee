"""What protobuf lets through in a message's fields: text that is no UTF-8, attributes without a value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...compiler.ir.signatures import STANDARD_DOMAINS

if TYPE_CHECKING:
    import onnx

_FIELDS = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 11: "sparse_tensor", 13: "tp"}
_LISTS = {
    6: "floats",
    7: "ints",
    8: "strings",
    9: "tensors",
    10: "graphs",
    12: "sparse_tensors",
    14: "type_protos",
}
"""The field that holds an attribute's value, by the attribute's type."""

_KEPT_EMPTY = frozenset({"f", "i", "s"})
"""Scalar fields: absent means zero or empty."""


def text_problem(message: Any) -> str | None:
    """The first text in ``message`` that is no UTF-8, None if all is; weights are not looked at."""
    for field, value in message.ListFields():
        if field.message_type is None:
            if field.type == field.TYPE_STRING:
                for text in value if field.is_repeated else (value,):
                    if isinstance(text, bytes):
                        return f"{message.DESCRIPTOR.name}.{field.name} is no UTF-8 text ({text[:40]!r})"
            continue
        for part in value if field.is_repeated else (value,):
            if part.DESCRIPTOR.name != "TensorProto" and (found := text_problem(part)) is not None:
                return found
            if part.DESCRIPTOR.name == "TensorProto" and isinstance(part.name, bytes):
                return f"a tensor's name is no UTF-8 text ({part.name[:40]!r})"
    return None


def attribute_problems(node: onnx.NodeProto, parameters: frozenset[str]) -> Iterator[str]:
    """What is wrong with the attributes of ``node``; one without a type gets the type of its value.

    ``parameters``: attributes of the function that the node is in, which its own may refer to.
    """
    names = set()
    for attribute in node.attribute:
        if not attribute.name or attribute.name in names:
            yield (
                f"attribute {attribute.name!r} is given twice"
                if attribute.name
                else "has a nameless attribute"
            )
        names.add(attribute.name)
        if attribute.ref_attr_name:
            if attribute.ref_attr_name not in parameters:
                fact = f"attribute {attribute.name!r} refers to {attribute.ref_attr_name!r}"
                yield f"{fact}, no parameter of a function around it"
            elif attribute.type not in _FIELDS and attribute.type not in _LISTS:
                yield f"attribute {attribute.name!r} has no type"
            elif attribute.type in (5, 10):
                yield f"attribute {attribute.name!r} takes a graph as a function parameter"
            continue
        if attribute.type == 0:  # files of IR version 1 say the type by the field alone
            attribute.type = next((code for code, field in _FIELDS.items() if attribute.HasField(field)), 0)
            lists = (code for code, field in _LISTS.items() if len(getattr(attribute, field)))
            attribute.type = attribute.type or next(lists, 0)
        field = _FIELDS.get(attribute.type)
        if field is None and attribute.type not in _LISTS:
            yield f"attribute {attribute.name!r} has no type"
        elif field is not None and field not in _KEPT_EMPTY and not attribute.HasField(field):
            yield f"attribute {attribute.name!r} has no value"
        elif node.domain in STANDARD_DOMAINS and not _is_text(attribute):
            yield f"attribute {attribute.name!r} is no UTF-8 text"


def _is_text(attribute: onnx.AttributeProto) -> bool:
    try:
        for text in (attribute.s, *attribute.strings):
            text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
