"""The source's own execution of an ONNX model: plain ONNX Runtime on the original file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...compiler.errors import MiaotuiError, ModelError, ToolError, require
from ...compiler.program import Program
from ...compiler.reference import Array, Arrays


class OnnxReference:
    """Runs the file at ``path`` with ONNX Runtime on the CPU, default options, nothing of the compiler's.

    If ONNX Runtime is not installed or can't load the file, the model is imported again (``again``) and
    evaluated with the reference implementations of ONNX; ``name`` says so from the first run on.
    """

    def __init__(self, path: Path, program: Program, again: Callable[[], Program]) -> None:
        self.name = f"onnxruntime {_version()}"
        self.path = path.absolute()
        self._again = again
        self._outputs = [str(value.name) for value in program.main.graph.outputs]
        computed = {value.name for node in program.main.graph for value in node.outputs}
        self._layers = {path: name for path, name in program.layers.items() if name in computed}
        self._external = {
            name: value.const_value
            for name, value in program.main.graph.initializers.items()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
        self._session: Any = None
        self._stand_in: Program | None = None

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs of the original model, by name."""
        if (stand_in := self._open()) is not None:
            return self._evaluate(stand_in, inputs)
        return self._run(self._session, self._outputs, inputs)

    def layers(self, inputs: Mapping[str, Array]) -> Arrays:
        """Values of ``Program.layers`` by layer path, read from a copy of the model with more outputs."""
        if (stand_in := self._open()) is not None:
            values = self._evaluate(stand_in, inputs, list(dict.fromkeys(self._layers.values())))
        else:
            session, names = self._tapped()
            values = self._run(session, names, inputs)
        return {path: values[name] for path, name in self._layers.items() if name in values}

    def _run(self, session: Any, names: list[str], inputs: Mapping[str, Array]) -> Arrays:
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except Exception as error:  # onnxruntime raises its own types, by the reason of failure
            fact = f"fails in plain onnxruntime: {(str(error).splitlines() or ['?'])[0]}"
            raise ModelError(str(self.path), fact, "mend the model, or give inputs that it takes") from error

    def _evaluate(self, program: Program, inputs: Mapping[str, Array], taps: Sequence[str] = ()) -> Arrays:
        from ...compiler.ir.evaluate import evaluate

        try:
            return evaluate(program.main, dict(inputs), taps=taps)
        except MiaotuiError:
            raise
        except Exception as error:  # the reference implementations trip as they may
            fact = f"fails in {self.name.split(' (')[0]}: {error or type(error).__name__}"
            raise ModelError(str(self.path), fact, "mend the model, or give inputs that it takes") from error

    def _open(self) -> Program | None:
        """Open the session once; the program that stands in for it if there can be none."""
        if self._session is None and self._stand_in is None:
            import onnx

            try:
                self._session = _session(str(self.path))
            except Exception as error:  # onnxruntime raises its own types, by the reason of refusal
                reason = f"onnxruntime can't load it: {(str(error).splitlines() or ['?'])[0]}"
                reason = "onnxruntime is not installed" if isinstance(error, ToolError) else reason
                self._stand_in = self._again()
                self.name = f"onnx.reference {onnx.__version__} ({reason})"
        return self._stand_in

    def _tapped(self) -> tuple[Any, list[str]]:
        """A session over a copy of the file whose layers are outputs too; not kept: it holds weights."""
        import onnx

        proto = onnx.load(str(self.path), load_external_data=False)
        made = {name for node in proto.graph.node for name in node.output}
        declared = {value.name for value in proto.graph.output}
        names = [name for name in dict.fromkeys(self._layers.values()) if name in made]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in declared)
        stored = {tensor.name for tensor in proto.graph.initializer}
        # as arrays, mapped: a model given as bytes has no folder in which to find its data
        external = {name: tensor.numpy() for name, tensor in self._external.items() if name in stored}
        return _session(proto.SerializeToString(), external), names


def _version() -> str:
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return ""


def _session(model: str | bytes, external: Mapping[str, Array] | None = None) -> Any:
    ort = require("onnxruntime", extra="cpu")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if external:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in external.values()]
        options.add_external_initializers(list(external), values)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
