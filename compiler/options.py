"""What a user asks for: target, precision, inputs, passes. Frozen, parsed once, resolved at the top."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import onnx_ir as ir

from .errors import OptionError
from .parallel.mesh import Mesh
from .parallel.plan import builders
from .program import Dim, DimRange

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "int4"]
Goal: TypeAlias = Literal["speed", "size"]
CacheType: TypeAlias = Literal["auto", "fp32", "fp16", "int8"]
SMALL = ("int8", "int4")
"""Precisions of weights alone: what reads them computes in float32 on the CPU, in float16 on CUDA."""
Device: TypeAlias = Literal["cpu", "cuda"]
BackendName: TypeAlias = Literal["auto", "ort", "native", "tvm", "ort+tvm"]

CPU_ARCHS = (
    "native",
    "x86-64-v4-bf16",
    "x86-64-v4-vnni",
    "x86-64-v4",
    "x86-64-v3-vnni",
    "x86-64-v3",
    "x86-64",
    "armv8.2-a",
)
"""Instruction sets that code is compiled for; ``native``: the one of the CPU that compiles."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the executable runs: a device and, where it matters, its architecture.

    >>> Target.parse("cuda:sm_90")
    Target(device='cuda', arch='sm_90')
    >>> str(Target.parse("CUDAExecutionProvider"))
    'cuda'
    """

    device: Device = "cpu"
    arch: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """``cpu``, ``cpu:x86-64-v3``, ``cuda``, ``cuda:sm_90``, or a provider of ONNX Runtime's.

        Raises: OptionError.
        """
        name, _, arch = text.partition(":")
        name = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}.get(name, name.lower())
        if name == "cpu" and (not arch or arch in CPU_ARCHS):
            return cls("cpu", arch)
        if name == "cuda" and re.fullmatch(r"(sm_\d{2,3}a?)?", arch):
            return cls("cuda", arch)
        fix = "use cpu, cuda or cuda:sm_90"
        if name == "cpu":
            fix = f"use cpu, or cpu: and one of {', '.join(CPU_ARCHS)}"
        raise OptionError("--target", f"{text!r} is no target", fix)

    def __str__(self) -> str:
        return f"{self.device}:{self.arch}" if self.arch else self.device


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One ``--input``: a shape, and optionally dtype, for a named input.

    >>> InputSpec.parse("x:1x3x224x224")
    InputSpec(name='x', shape=(1, 3, 224, 224), dtype=None)
    >>> InputSpec.parse("ids:[batch,seq]:int64").shape
    ('batch', 'seq')
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: ir.DataType | None = None

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """``NAME:1x3x224x224`` or ``NAME:[1,3,224,224]``, and ``:dtype``. Raises: OptionError."""
        match = re.fullmatch(r"(?P<name>.+?):(?P<shape>\[[^\]]*\]|[^:\[\]]*)(:(?P<dtype>\w+))?", text)
        if match is None:
            raise OptionError("--input", f"{text!r} does not parse", "write NAME:1x3x224x224[:float32]")
        body = match["shape"].strip("[]")
        parts = [p.strip() for p in re.split(r",|x(?=\d|[A-Za-z_])", body)] if body else []
        dims = tuple(int(p) if p.isdigit() else p for p in parts)
        if any(isinstance(d, str) and not d.isidentifier() for d in dims):
            fix = "write sizes or names: 1x3x224x224"
            raise OptionError("--input", f"{text!r}: {body!r} is no shape", fix)
        return cls(match["name"], dims, _dtype(match["dtype"], text) if match["dtype"] else None)


_SHORT_DTYPES = {
    "f64": "DOUBLE", "float64": "DOUBLE", "f32": "FLOAT", "float32": "FLOAT",
    "f16": "FLOAT16", "float16": "FLOAT16", "bf16": "BFLOAT16", "bfloat16": "BFLOAT16",
    "i64": "INT64", "i32": "INT32", "i16": "INT16", "i8": "INT8", "u8": "UINT8", "bool": "BOOL",
}  # fmt: skip


def _dtype(name: str, text: str) -> ir.DataType:
    try:
        return ir.DataType[_SHORT_DTYPES.get(name, name.upper())]
    except KeyError:
        fix = f"one of {', '.join(_SHORT_DTYPES)}"
        raise OptionError("--input", f"{text!r}: no dtype {name!r}", fix) from None


def parse_dim_range(text: str) -> tuple[str, DimRange]:
    """``batch=1..64`` (or ``batch=1..``, ``batch=8``) as a name and a range. Raises: OptionError.

    >>> parse_dim_range("batch=1..64")
    ('batch', DimRange(minimum=1, maximum=64))
    """
    match = re.fullmatch(r"(?P<name>[A-Za-z_]\w*)=(?P<low>\d+)(?P<dots>\.\.(?P<high>\d*))?", text)
    if match is None:
        raise OptionError("--dim", f"{text!r} does not parse", "write batch=1..64")
    low = int(match["low"])
    high = low if match["dots"] is None else int(match["high"]) if match["high"] else None
    if high is not None and high < low:
        raise OptionError("--dim", f"{text!r} is an empty range", f"write {match['name']}={high}..{low}")
    return match["name"], DimRange(low, high)


def parse_bytes(text: str) -> int:
    """``8GiB``, ``80GB``, ``512MiB`` or plain bytes. Raises: OptionError.

    >>> parse_bytes("1.5GiB")
    1610612736
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise OptionError(
            "--memory", f"{text!r} is no amount of memory", "write 8GiB, 80GB or a count of bytes"
        )
    count, prefix, binary = match.groups()
    unit = (1024 if binary else 1000) ** ("KMGT".index(prefix.upper()) + 1 if prefix else 0)
    return int(float(count) * unit)


def parse_sparsity(text: str) -> dict[str, float]:
    """Patterns by name with the share of weights, channels or heads that goes. Raises: OptionError.

    >>> parse_sparsity("channels:0.3,block:0.8")
    {'channels': 0.3, 'block': 0.8}
    >>> parse_sparsity("2:4"), parse_sparsity("0.5")
    ({'2:4': 0.5}, {'unstructured': 0.5})
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().rpartition(":")
        name = name or "unstructured"
        if part.strip() == "2:4":
            name, share = "2:4", "0.5"
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if name not in PATTERNS or name in found or not 0 < value < 1:
            fix = "write 0.5, 2:4, block:0.8, channels:0.3 or heads:0.25, several with commas"
            raise OptionError("--sparsity", f"{part.strip()!r} is no pattern with a share of its own", fix)
        found[name] = value
    zeros = [name for name in found if name not in ("heads", "channels")]
    if len(zeros) > 1:
        raise OptionError(
            "--sparsity", f"{' and '.join(zeros)} are patterns of the same weights", "choose one"
        )
    return found


PATTERNS = ("heads", "channels", "unstructured", "2:4", "block")
"""Of sparsity, in the order in which they are applied; ``block`` is 16 outputs by one input."""


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """Everything ``compile`` can be told; ``None`` means the default, resolved by the driver.

    ``opt``: 0 imports only, 1 cleanup, 2 adds raising, fusion and lowering, 3 is 2 with no time budget for
    the never-slower check. ``enable`` and ``disable`` hold pass specs (``fuse-qkv``,
    ``convert-fp16{keep=Softmax}``). ``sparsity``: patterns of zeros and what to remove, ``block:0.8``,
    ``2:4``, ``0.5`` (anywhere), ``channels:0.3``, ``heads:0.25``, several joined by commas. ``rank``: of the
    factors of linear weights, as a share of the rank at which they are as large as the weight. ``cache``:
    what the KV cache is kept in. ``tune``: schedules TVM may measure for each kernel, 0 for none. ``calib``:
    an ``.npz`` of inputs or a text file, to measure activations on.
    ``budget``: greatest error allowed against the source: scaled error, for language models with approximated
    weights mean KL; ``goal``: what the choice of weights' formats within it minimizes. ``threads``: intra-op
    threads for timing (default: all cores). ``timing``: seconds the never-slower
    check may spend. ``keep_source``: keep the imported model in the folder, to compare and bisect later; by
    default unless weights get smaller than they were. ``numerics``: evaluate the program without a backend
    after every pass and report the error (slow). ``mesh``: replicas, pipeline stages and tensor shards that
    the executable is cut into, one piece by default. ``memory``: bytes of weights that a device holds.
    """

    target: Target = Target()
    backend: BackendName = "auto"
    precision: Precision = "fp32"
    opt: int = 2
    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    dims: tuple[tuple[str, DimRange], ...] = ()
    sparsity: str | None = None
    rank: float | None = None
    cache: CacheType = "auto"
    tune: int = 0
    calib: str | None = None
    budget: float | None = None
    goal: Goal = "speed"
    strict: bool = True
    threads: int | None = None
    timing: float = 8.0
    verify: bool = True
    keep_source: bool | None = None
    numerics: bool = False
    seed: int = 0
    mesh: Mesh = field(default_factory=Mesh)
    memory: int | None = None

    @property
    def keeps_source(self) -> bool:
        """Whether the imported model stays in the folder."""
        return not self.approximates if self.keep_source is None else self.keep_source

    @property
    def narrows(self) -> bool:
        """Whether it is computed in 16 bits."""
        return self.precision in ("fp16", "bf16") or (
            self.precision in SMALL and self.target.device == "cuda"
        )

    @property
    def approximates(self) -> bool:
        """Whether weights are replaced by smaller ones that give nearly the same."""
        return self.precision in ("int8", "int4") or self.sparsity is not None or self.rank is not None

    def __post_init__(self) -> None:
        for value, choices, flag in (
            (self.precision, get_args(Precision), "--precision"),
            (self.backend, get_args(BackendName), "--backend"),
            (self.opt, (0, 1, 2, 3), "-O"),
            (self.goal, get_args(Goal), "--goal"),
            (self.cache, get_args(CacheType), "--cache"),
        ):
            if value not in choices:
                fix = f"use one of {', '.join(map(str, choices))}"
                raise OptionError(flag, f"{value!r} is not offered", fix)
        if self.precision in SMALL and self.target.device == "cuda" and self.backend == "tvm":
            fact = f"TVM's kernels for {self.precision} weights are for CPUs"
            raise OptionError("--precision", fact, "use fp16 there, or --backend ort")
        if self.backend == "native" and self.target.device != "cpu":
            raise OptionError(
                "--backend", "native writes code for CPUs", "use --target cpu, or --backend ort"
            )
        if self.backend == "ort+tvm" and self.target.device != "cpu":
            raise OptionError("--backend", "ort+tvm shares out regions on CPUs", "use ort or tvm alone")
        if self.backend == "ort+tvm" and self.narrows:
            fact = f"ort+tvm has no kernels for regions in {self.precision}"
            raise OptionError("--precision", fact, "use fp32, or one backend alone")
        if self.backend in ("ort", "ort+tvm") and self.target.device == "cpu" and self.target.arch:
            fact = f"ONNX Runtime chooses its kernels when it runs, not for {self.target.arch}"
            raise OptionError("--target", fact, "use --target cpu, or --backend native")
        if self.tune < 0 or (self.tune and self.backend not in ("tvm", "auto")):
            fact = f"{self.tune} trials are for kernels of TVM's, not for --backend {self.backend}"
            raise OptionError("--tune", fact, "give --backend tvm and a count such as 64")
        if self.rank is not None and not 0 < self.rank < 1:
            raise OptionError("--rank", f"{self.rank} is no share between 0 and 1", "give one such as 0.5")
        if self.sparsity is not None:
            parse_sparsity(self.sparsity)
        if self.budget is not None and not self.budget > 0:
            raise OptionError("--budget", f"{self.budget} is not positive", "give an error such as 1e-4")
        if self.mesh.size > 1 and self.backend not in ("auto", *(able := builders(self.mesh))):
            asked = "--tp asks" if self.mesh.tp > 1 else "--dp and --pp ask"
            fact = f"{self.backend} builds no parts of a program such as {asked} for"
            raise OptionError("--backend", fact, f"use {' or '.join(able)}")
        if self.memory is not None and self.memory < 1:
            raise OptionError("--memory", f"{self.memory} is no amount of memory", "give one such as 8GiB")
        if self.threads is not None and self.threads < 1:
            raise OptionError("--threads", f"{self.threads} is less than 1", "give a thread count")
