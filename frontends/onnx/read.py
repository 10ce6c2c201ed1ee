"""Open an ONNX file: say what a file that is none seems to be, parse it, check it, hand it to the IR."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from ...compiler.errors import ModelError, UnsupportedError
from .sparse import make_dense
from .structure import check_structure
from .tensors import check_tensors

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 1
"""The largest message protobuf can hold; larger models keep their weights in external data."""

_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model", "run git lfs pull"),
    (b"PK\x03\x04", "a zip archive (perhaps a torch checkpoint or a .keras model)", "give the file it holds"),
    (b"\x80\x02", "a Python pickle", "export the model to ONNX; pickles are never opened"),
    (b"\x80\x03", "a Python pickle", "export the model to ONNX; pickles are never opened"),
    (b"\x80\x04", "a Python pickle", "export the model to ONNX; pickles are never opened"),
    (b"\x80\x05", "a Python pickle", "export the model to ONNX; pickles are never opened"),
    (b"\x89HDF", "an HDF5 file (perhaps old Keras weights)", "export the model to ONNX"),
    (b"GGUF", "a GGUF file", "rename it to .gguf"),
    (b"ORTM", "an ORT-format model", "give the .onnx file it was made from"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
)


def read_model(path: Path) -> ir.Model:
    """The checked model of the ONNX file at ``path``; its external weights stay on disk, mapped when read.

    Raises: ModelError if the file is missing, no ONNX model, damaged, or refused for safety, with every
    problem found; UnsupportedError for constructs the IR does not have.
    """
    proto = _parse(path)
    check_structure(proto, str(path))
    check_tensors(proto, path)
    make_dense(proto, str(path))
    return _deserialize(proto, str(path))


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    data = _read(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise _not_onnx(path, data[:512]) from None
    if not proto.HasField("graph"):
        raise _not_onnx(path, data[:512])
    return proto


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelError(str(path), "is a folder", "give the .onnx file inside it")
        size = path.stat().st_size
        if size > MAX_BYTES:
            fact = f"has {size:,} bytes, protobuf holds at most {MAX_BYTES:,}"
            raise ModelError(str(path), fact, "export it again with external data")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(str(path), "does not exist", "check the path") from None
    except OSError as error:
        raise ModelError(
            str(path), f"can't be read ({error.strerror})", "check the path and its rights"
        ) from None
    except ValueError as error:  # a NUL in the path
        raise ModelError(repr(str(path)), f"is no path ({error})", "check the path") from None
    if not data:
        raise ModelError(str(path), "is empty", "download or export it again")
    return data


def _not_onnx(path: Path, head: bytes) -> ModelError:
    for magic, kind, fix in _SIGNATURES:
        if head.startswith(magic):
            return ModelError(str(path), f"is {kind}", fix)
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return ModelError(str(path), "is a web page, not a model", "download the raw file")
    if start.startswith((b"{", b"[")):
        return ModelError(str(path), "is JSON text", "give a binary .onnx file")
    if not any(head):
        return ModelError(str(path), "starts with zeros only", "download or export it again")
    # every ONNX file in use starts with its ir_version: field 1, a varint
    if head[:1] == b"\x08":
        return ModelError(str(path), "is a truncated or damaged ONNX model", "download or export it again")
    return ModelError(str(path), f"is no ONNX model (starts with {head[:8].hex(' ')})", "give a .onnx file")


def _deserialize(proto: onnx.ModelProto, place: str) -> ir.Model:
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings repeat what the structure check reports
    try:
        return ir.from_proto(proto)
    except Exception as error:  # whatever the IR's reader makes of a malformed message
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = (str(cause).splitlines() or [type(cause).__name__])[0]
        if isinstance(cause, NotImplementedError):
            raise UnsupportedError(place, text, "export the model without it") from error
        raise ModelError(place, f"is malformed: {text}", "export the model again") from error
    finally:
        logger.setLevel(level)
