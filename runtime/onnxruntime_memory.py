"""A device's memory under ONNX Runtime: OrtValues by address, IO binding, CUDA graphs by run option."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from ..compiler.ir.builder import Builder
from ..compiler.reference import Array
from .device_memory import Buffer
from .messages import translated

CAPTURE = "ep.cuda.enable_cuda_graph"
"""Setting of a session whose runs may be captured."""

GRAPH = "gpu_graph_id"
"""Run option: the captured graph's number; -1 runs without capturing."""

REFUSED = "cannot use the graph capture feature"
"""What a session says that has nodes on the CPU between those on the device, or control flow."""


class OrtMemory:
    """``device``'s memory for runs of ``session``: ``"cuda"``, or ``"cpu"``, where nothing is captured.

    ``provider``: what copies run on, with its options. ``captures``: whether the session was made with CUDA
    graphs. Runs of one session that captures may not overlap: they wait for each other.
    """

    def __init__(
        self, ort: Any, session: Any, device: str, provider: Any, place: str, *, captures: bool = False
    ) -> None:
        self._ort, self._session, self._provider = ort, session, provider
        self._device, self._place, self.captures = device, place, captures
        self._lock = threading.Lock()
        self._options: dict[int, Any] = {}
        self._helpers: dict[tuple[str, ir.DataType], Any] = {}

    def empty(self, shape: Sequence[int], dtype: ir.DataType) -> Buffer:
        """A new buffer of zeros. Raises: DeviceError if there is no room."""
        make = self._ort.OrtValue.ortvalue_from_shape_and_type
        try:
            value = make(list(shape), int(dtype), self._device, 0)
        except Exception as error:
            raise translated(error, self._place, self._device) from error
        buffer = Buffer(value, value.data_ptr(), tuple(shape), dtype)
        if buffer.nbytes:
            kind, width = _words(buffer)
            size = width * (prod(shape) // shape[-1])
            session = self._helper("ConstantOfShape", kind)
            binding = session.io_binding()
            binding.bind_cpu_input("size", np.array([size], np.int64))
            self._out(binding, "y", buffer.address, (size,), kind)
            self._do(session, binding)
        return buffer

    def write(self, buffer: Buffer, array: Array) -> None:
        """Copy ``array`` into a whole buffer, which stays where it is."""
        buffer.owner.update_inplace(np.ascontiguousarray(array))

    def read(self, buffer: Buffer) -> Array:
        """A copy of a whole buffer, once every run before is over."""
        if buffer.dtype.numpy().isbuiltin == 1:
            found = np.asarray(buffer.owner.numpy())
            return found.copy() if self._device == "cpu" else found
        # numpy has no name for bfloat16: as 16-bit integers by a view of the same memory
        bits = self.empty(buffer.shape, ir.DataType.UINT16)
        shape = (buffer.nbytes // 2,)
        self._copied("Identity", buffer.address, shape, bits.address, shape, bits.dtype)
        return np.asarray(bits.owner.numpy()).view(buffer.dtype.numpy())

    def grown(self, old: Buffer, new: Buffer) -> None:
        """Copy ``old`` to the beginning of axis 2 of ``new``; the rest of it becomes zeros."""
        rest = self.empty((*old.shape[:2], new.shape[2] - old.shape[2], *old.shape[3:]), old.dtype)
        kind, width = _words(old)
        session = self._helper("Concat", kind)
        binding = session.io_binding()
        for name, part in (("x", old), ("z", rest)):
            self._in(binding, name, part.address, (*part.shape[:3], width), kind)
        self._out(binding, "y", new.address, (*new.shape[:3], width), kind)
        self._do(session, binding)

    def gathered(self, old: Buffer, new: Buffer, rows: Sequence[int]) -> None:
        """Copy ``rows`` of ``old`` to ``new``, in that order."""
        kind, width = _words(old)
        flat = prod(old.shape[1:-1]) * width
        chosen = np.array(rows, np.int64)
        self._copied(
            "Gather", old.address, (old.shape[0], flat), new.address, (len(rows), flat), kind, chosen
        )

    def bind(self, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> Any:
        """Inputs and the wanted outputs bound to where they lie."""
        binding = self._session.io_binding()
        for name, buffer in inputs.items():
            self._in(binding, name, buffer.address, buffer.shape, buffer.dtype)
        for name, buffer in outputs.items():
            self._out(binding, name, buffer.address, buffer.shape, buffer.dtype)
        return binding

    def run(self, binding: Any, graph: int | None = None) -> None:
        """Run over a binding; captured as graph number ``graph`` the first time, replayed from then on.

        Raises: CompileError if a kernel fails, DeviceError if the device does.
        """
        try:
            with self._lock:
                self._session.run_with_iobinding(binding, self.options(graph))
        except Exception as error:
            raise translated(error, self._place, self._device) from error

    def options(self, graph: int | None = None) -> Any:
        """The run options for a graph's number, made once; None for a session that captures nothing."""
        if not self.captures:
            return None
        number = -1 if graph is None else graph
        if number not in self._options:
            made = self._options[number] = self._ort.RunOptions()
            made.add_run_config_entry(GRAPH, str(number))
        return self._options[number]

    def _do(self, session: Any, binding: Any) -> None:
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise translated(error, self._place, self._device) from error

    def _copied(
        self, op_type: str, source: int, shape: Sequence[int], target: int, wanted: Sequence[int],
        kind: ir.DataType, rows: Array | None = None,
    ) -> None:  # fmt: skip
        session = self._helper(op_type, kind)
        binding = session.io_binding()
        self._in(binding, "x", source, shape, kind)
        if rows is not None:
            binding.bind_cpu_input("rows", rows)
        self._out(binding, "y", target, wanted, kind)
        self._do(session, binding)

    def _in(self, binding: Any, name: str, address: int, shape: Sequence[int], kind: ir.DataType) -> None:
        binding.bind_input(name, self._device, 0, int(kind), list(shape), address)

    def _out(self, binding: Any, name: str, address: int, shape: Sequence[int], kind: ir.DataType) -> None:
        binding.bind_output(name, self._device, 0, int(kind), list(shape), address)

    def _helper(self, op_type: str, kind: ir.DataType) -> Any:
        """A session of one operator on the device: copies without the host between, whatever the dtype is."""
        made = self._helpers.get((op_type, kind))
        if made is None:
            options = self._ort.SessionOptions()
            options.log_severity_level = 3
            data = ir.serde.serialize_model(_one(op_type, kind)).SerializeToString()
            made = self._ort.InferenceSession(data, options, providers=[self._provider])
            self._helpers[op_type, kind] = made
        return made


def _one(op_type: str, kind: ir.DataType) -> ir.Model:
    """Zeros of a size, two parts joined on axis 2, rows picked, or a copy."""
    b = Builder(opset=13)
    if op_type == "ConstantOfShape":
        value = ir.tensor(np.zeros(1, kind.numpy()))
        made = b.op(op_type, b.input("size", (1,), ir.DataType.INT64), value=value)
    elif op_type == "Concat":
        x, z = (b.input(name, ("rows", "heads", None, "words"), kind) for name in "xz")
        made = b.op(op_type, x, z, axis=2)
    elif op_type == "Gather":
        x = b.input("x", ("rows", "words"), kind)
        made = b.op(op_type, x, b.input("rows", (None,), ir.DataType.INT64), axis=0)
    else:
        made = b.op(op_type, b.input("x", (None,), kind))
    b.output(made, "y")
    model = b.model()
    model.ir_version = 10
    return model


def _words(buffer: Buffer) -> tuple[ir.DataType, int]:
    """As what the last axis is copied, and how many of it: 8 bytes at once if it is made of such."""
    width = buffer.shape[-1] * int(buffer.dtype.itemsize)
    return (ir.DataType.INT64, width // 8) if width % 8 == 0 else (ir.DataType.UINT8, width)
