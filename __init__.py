"""miaotui: from a model description to a proved and timed executable.

::

    exe = miaotui.compile(model_or_path, inputs=None, target="cpu")
    exe.run({"x": array})          # -> {"y": array}
    exe(*args, **kwargs)           # what the source model takes and returns
    exe.verify(); exe.bench(); exe.save("model.miaotui")
    exe.generate("Once upon a time", max_tokens=64)   # language models; also exe.stream, exe.chat
    exe = miaotui.open("model.miaotui")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from .compiler.errors import (
    ArtifactError,
    CompileError,
    InputError,
    InternalError,
    MiaotuiError,
    ModelError,
    OptionError,
    PlacementError,
    ToolError,
    UnsupportedError,
    VerificationError,
)

if TYPE_CHECKING:
    from .compiler.options import CompileOptions, Target
    from .compiler.program import Program
    from .driver.progress import Progress
    from .runtime.bench import BenchResult
    from .runtime.executable import Executable, Verification
    from .runtime.generate import Conversation, Generation, GenerationOptions

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "CompileError",
    "CompileOptions",
    "Conversation",
    "Executable",
    "Generation",
    "GenerationOptions",
    "InputError",
    "InternalError",
    "MiaotuiError",
    "ModelError",
    "OptionError",
    "PlacementError",
    "Program",
    "Target",
    "ToolError",
    "UnsupportedError",
    "VerificationError",
    "__version__",
    "bench",
    "compile",
    "load",
    "open",
    "verify",
]

_LAZY = {
    "CompileOptions": "compiler.options",
    "Conversation": "runtime.generate",
    "Executable": "runtime.executable",
    "Generation": "runtime.generate",
    "GenerationOptions": "runtime.generate",
    "Program": "compiler.program",
    "Target": "compiler.options",
}


def __getattr__(name: str) -> Any:
    """Types that are loaded on first use, so that ``import miaotui`` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def load(
    model: object, inputs: object = None, *, dims: Mapping[str, object] | None = None, **options: Any
) -> Program:
    """Import a model and return its Program, untransformed. Arguments as in ``compile``."""
    from .driver.options import options_of
    from .frontends.load import load as load_source

    return load_source(model, options_of(dims=dims, **options), inputs).program


def compile(  # noqa: A001 - the verb of the command line
    model: object,
    inputs: object = None,
    *,
    target: str = "cpu",
    backend: str = "auto",
    precision: str = "fp32",
    sparsity: str | None = None,
    rank: float | None = None,
    cache: str = "auto",
    calib: str | None = None,
    budget: float | None = None,
    goal: str = "speed",
    mesh: Mapping[str, int] | None = None,
    output: str | PathLike[str] | None = None,
    dims: Mapping[str, object] | None = None,
    enable: Sequence[str] = (),
    disable: Sequence[str] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Executable:
    """Compile a model into an executable folder, prove it against its source and time it.

    ``model``: a path (``.onnx``, ``.pt2``, ``.keras``, a Hugging Face folder), a torch module or
    exported program, a Keras model, or an ONNX model in memory. ``inputs``: example inputs as the
    source takes them (a tuple, a dict by parameter name, one tensor); made up if None. ``dims``: ranges of
    named dimensions, ``{"batch": (1, 64)}`` or ``{"batch": "1..64"}``. ``precision``,
    ``sparsity`` (``"channels:0.3,block:0.8"``), ``rank`` (share of a weight's size), ``cache`` (of keys and
    values) make it smaller; ``calib``, an ``.npz`` or a text file, is what activations are measured on.
    ``budget``: greatest error allowed, scaled or mean KL; ``goal``: what is made small within it, ``"speed"``
    or ``"size"``. ``mesh``: cut into replicas, pipeline stages and tensor shards, ``{"dp": 2, "pp": 2}``;
    ``open(…, executor=…)`` says what runs them. ``output``: the folder; a temporary one, removed with the
    Executable, if None. Further keywords are fields of ``CompileOptions``.

    Raises: CompileError (see ``miaotui.compiler.errors``) if the model can't be compiled as asked.
    """
    from .driver import compile as compile_model
    from .driver.options import options_of

    chosen = options_of(
        target=target,
        backend=backend,
        precision=precision,
        sparsity=sparsity,
        rank=rank,
        cache=cache,
        calib=calib,
        budget=budget,
        goal=goal,
        mesh=mesh,
        dims=dims,
        enable=enable,
        disable=disable,
        **options,
    )
    return compile_model(model, chosen, output=output, inputs=inputs, progress=progress)


def open(folder: str | PathLike[str], *, executor: str = "threads") -> Executable:  # noqa: A001 - the verb
    """Open an executable folder. Raises: ArtifactError if it is damaged or not ours.

    ``executor``: what runs the ranks of a partitioned one: ``threads``, ``processes{timeout=60}``,
    ``ray{address=auto}``; options are the fields of ``runtime.parallel.options.ParallelOptions``.
    """
    from .driver import open as open_folder

    return open_folder(folder, executor=executor)


def verify(
    folder: str | PathLike[str],
    reference: object = None,
    *,
    tolerance: float | None = None,
    repair: bool = False,
) -> Verification:
    """Compare an executable folder with its golden data, or with ``reference`` (a source model or path).

    ``repair``: where the error is over ``tolerance`` (None: what it was certified with), write the folder
    again with what costs least in higher precision; the comparison returned is the repaired one's.
    """
    with open(folder) as executable:
        found = executable.verify(reference=reference, tolerance=tolerance)
        if found.ok or not repair:
            return found
        from . import driver

        check = driver.verify(executable, reference, tolerance=tolerance, layers=False)
        driver.repair(executable, check, reference, tolerance=tolerance)
    with open(folder) as repaired:
        return repaired.verify(reference=reference, tolerance=tolerance)


def bench(
    folder: str | PathLike[str], against: str | PathLike[str] | None = None, **options: Any
) -> BenchResult:
    """Time an executable folder, interleaved with its source variant or with another folder."""
    with open(folder) as executable:
        return executable.bench(against=against, **options)
