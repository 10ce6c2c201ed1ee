"""What a kernel is to those who call it, and what it must know of the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Kernel:
    """``function``: a ``tvm.tirx.PrimFunc`` of inputs, ``weights`` and outputs. ``name``: its symbol."""

    name: str
    function: Any
    weights: tuple[ir.TensorProtocol, ...] = ()


@dataclass(frozen=True, slots=True)
class Cpu:
    """``lanes``: float32 numbers in the widest vector. ``threads``: cores that the target names, else 0.

    ``vnni``: products of 8-bit integers in 512-bit vectors.
    """

    lanes: int = 16
    threads: int = 0
    vnni: bool = False

    @classmethod
    def of(cls, target: Any) -> Self:
        """What ``target`` (a ``tvm.target.Target`` of kind llvm) has."""
        from tvm.target.codegen import target_has_features

        lanes = 16 if target_has_features("avx512f", target) else 8
        if not target_has_features("avx2", target):
            lanes = 4
        threads = int(target.attrs.get("num-cores", 0))
        return cls(lanes, threads, lanes == 16 and target_has_features("avx512vnni", target))

    @property
    def registers(self) -> int:
        """Vector registers: 32 with AVX-512, 16 below (32 on Arm, which has four lanes)."""
        return 16 if self.lanes == 8 else 32
