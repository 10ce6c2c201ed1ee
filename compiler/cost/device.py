"""Device descriptions: peak arithmetic and memory rates, for roofline estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ..errors import OptionError


@dataclass(frozen=True, slots=True)
class Device:
    """What a roofline needs of a device.

    ``gflops``: peak 10^9 floating-point operations a second by dtype (dense, tensor cores where they serve
    the dtype at its own precision); a dtype not listed runs at float32's rate. ``gbytes``: memory
    bandwidth in 10^9 bytes a second. ``overhead``: seconds a node costs however small it is.

    >>> Device("toy", {"FLOAT": 100.0}, 10.0).seconds(1e9, 1e9)
    0.1
    """

    name: str
    gflops: Mapping[str, float]
    gbytes: float
    overhead: float = 0.0

    def seconds(self, flops: float, traffic: float, dtype: ir.DataType = ir.DataType.FLOAT) -> float:
        """Time for ``flops`` operations or ``traffic`` bytes, whichever takes longer, plus overhead."""
        peak = self.gflops.get(dtype.name, self.gflops["FLOAT"])
        return max(flops / (peak * 1e9), traffic / (self.gbytes * 1e9)) + self.overhead


def cpu(cores: int = 1, gflops_per_core: float = 140.0, gbytes: float | None = None) -> Device:
    """A CPU of ``cores`` cores; defaults are an AVX-512 server core at 2.2 GHz and its share of bandwidth.

    The runtime replaces the defaults by measured rates where it has them.
    """
    bandwidth = 14.0 * cores if gbytes is None else gbytes
    return Device(f"cpu:{cores}", {"FLOAT": gflops_per_core * cores}, bandwidth, overhead=3e-6)


def _gpu(name: str, fp32: float, half: float, gbytes: float) -> Device:
    rates = {"FLOAT": fp32, "FLOAT16": half, "BFLOAT16": half}
    return Device(name, {dtype: rate * 1e3 for dtype, rate in rates.items()}, gbytes, overhead=3e-6)


# vendors' data sheets: TFLOP/s of float32 and of dense half precision, GB/s
CATALOGUE: Mapping[str, Device] = {
    device.name: device
    for device in (
        cpu(),
        _gpu("a100-80gb", 19.5, 312.0, 2039.0),
        _gpu("h100-sxm", 66.9, 989.4, 3350.0),
        _gpu("h200-sxm", 66.9, 989.4, 4800.0),
        _gpu("l4", 30.3, 121.0, 300.0),
        _gpu("rtx-4090", 82.6, 165.2, 1008.0),
        _gpu("t4", 8.1, 65.0, 320.0),
    )
}


def device(name: str) -> Device:
    """A device of the catalogue. Raises: OptionError listing the catalogue for another name."""
    if name not in CATALOGUE:
        raise OptionError("device", f"{name!r} is not in the catalogue", f"it has {', '.join(CATALOGUE)}")
    return CATALOGUE[name]
