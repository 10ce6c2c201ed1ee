"""The source's own execution of an ONNX model: plain ONNX Runtime on the original file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...compiler.errors import ToolError, require
from ...compiler.program import Program
from ...compiler.reference import Array, Arrays


class OnnxReference:
    """Runs the file at ``path`` with ONNX Runtime on the CPU, default options, nothing of the compiler's.

    If ONNX Runtime is not installed or can't load the file, the imported program is evaluated with the
    reference implementations of ONNX instead, and ``name`` says so from the first run on.
    """

    def __init__(self, path: Path, program: Program) -> None:
        self.path = path
        self._program = program.clone()
        self._outputs = [str(value.name) for value in program.main.graph.outputs]
        self._session: Any = None
        self._refused = False
        self.name = f"onnxruntime {_version()}"
        self._taps: tuple[tuple[str, ...], Any] | None = None

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs of the original model, by name."""
        session = self._open()
        if session is None:
            return _evaluate(self._program.main, inputs)
        return dict(zip(self._outputs, session.run(self._outputs, dict(inputs)), strict=True))

    def layers(self, inputs: Mapping[str, Array]) -> Arrays:
        """Values of ``Program.layers`` by layer path, read from a copy of the model with more outputs."""
        known = _output_names(self._program.main)
        wanted = {path: value for path, value in self._program.layers.items() if value in known}
        if not wanted:
            return {}
        taps = list(dict.fromkeys(wanted.values()))
        if self._open() is None:
            values = _evaluate(self._program.main, inputs, taps)
        else:
            session, names = self._open_tapped(taps)
            values = dict(zip(names, session.run(names, dict(inputs)), strict=True))
        return {path: values[value] for path, value in wanted.items() if value in values}

    def _open(self) -> Any:
        if self._session is None and not self._refused:
            try:
                self._session = _session(str(self.path))
            except ToolError:
                self._stand_in("onnxruntime is not installed")
            except Exception as error:  # onnxruntime raises its own types, by the reason of refusal
                self._stand_in(f"onnxruntime can't load it: {(str(error).splitlines() or ['?'])[0]}")
        return self._session

    def _stand_in(self, reason: str) -> None:
        import onnx

        self._refused = True
        self.name = f"onnx.reference {onnx.__version__} ({reason})"

    def _open_tapped(self, taps: Sequence[str]) -> tuple[Any, list[str]]:
        import onnx

        if self._taps is None or self._taps[0] != tuple(taps):
            proto = onnx.load(str(self.path), load_external_data=False)
            made = {name for node in proto.graph.node for name in node.output}
            declared = {value.name for value in proto.graph.output}
            names = [name for name in taps if name in made]
            proto.graph.output.extend(
                onnx.ValueInfoProto(name=name) for name in names if name not in declared
            )
            external = _external(self._program.main, {t.name for t in proto.graph.initializer})
            self._taps = (tuple(taps), (_session(proto.SerializeToString(), external), names))
        session, names = self._taps[1]
        return session, names


def _version() -> str:
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return ""


def _evaluate(model: ir.Model, inputs: Mapping[str, Array], taps: Sequence[str] = ()) -> Arrays:
    from ...compiler.ir.evaluate import evaluate

    return evaluate(model, dict(inputs), taps=taps)


def _session(model: str | bytes, external: Mapping[str, Array] | None = None) -> Any:
    ort = require("onnxruntime", extra="cpu")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if external:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in external.values()]
        options.add_external_initializers(list(external), values)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _external(model: ir.Model, names: set[str]) -> Arrays:
    """The mapped arrays of external initializers: a model given as bytes has no folder to find them in."""
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if name in names and isinstance(value.const_value, ir.ExternalTensor)
    }


def _output_names(model: ir.Model) -> set[str]:
    return {str(value.name) for node in model.graph for value in node.outputs if value.name}
