"""The weight store: exact bytes of every dtype, stored once, in constant memory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import ArtifactError, ModelError
from miaotui.compiler.weights import ALIGNMENT, PAGE, WeightStore

RNG = np.random.default_rng(0)


def lazy(array: np.ndarray, cache: bool = False) -> ir.LazyTensor:
    made = ir.tensor(array)
    return ir.LazyTensor(lambda: made, dtype=made.dtype, shape=ir.Shape(array.shape), cache=cache)


def external(path: Path, array: np.ndarray, offset: int = 0) -> ir.ExternalTensor:
    path.write_bytes(b"\1" * offset + array.tobytes())
    dtype = ir.tensor(array).dtype
    shape = ir.Shape(array.shape)
    return ir.ExternalTensor(
        path.name, offset, array.nbytes, dtype, shape=shape, name="e", base_dir=path.parent
    )


TENSORS = {
    "float32": ir.tensor(RNG.standard_normal((7, 9)).astype(np.float32)),
    "float16": ir.tensor(RNG.standard_normal((7, 9)).astype(np.float16)),
    "bfloat16": ir.tensor(RNG.standard_normal((7, 9)).astype(ml_dtypes.bfloat16)),
    "int4 packed": ir.tensor(RNG.integers(-8, 7, 11).astype(ml_dtypes.int4)),
    "bool": ir.tensor(RNG.integers(0, 2, 13).astype(bool)),
    "not contiguous": ir.tensor(np.arange(64, dtype=np.int64).reshape(8, 8).T),
    "scalar": ir.tensor(np.float64(3)),
    "empty": ir.tensor(np.zeros((0, 4), np.float32)),
    "lazy": lazy(np.arange(5000)),
    "lazy cached": lazy(np.arange(5000) + 1, cache=True),
    "lazy int4": lazy(np.ones(9, ml_dtypes.int4)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_bytes_are_those_onnx_stores(tmp_path: Path, name: str) -> None:
    tensor = TENSORS[name]
    with WeightStore(tmp_path / "w") as store:
        store.add(ir.tensor(np.ones(3, np.int8)))
        region = store.add(tensor)
    data = (tmp_path / "w").read_bytes()
    assert data[region.offset : region.offset + region.length] == tensor.tobytes()


def test_offsets_are_aligned_and_the_hash_is_the_files(tmp_path: Path) -> None:
    with WeightStore(tmp_path / "w") as store:
        small = [store.add(ir.tensor(RNG.integers(0, 9, n))) for n in (1, 3, 17)]
        large = store.add(ir.tensor(RNG.integers(0, 9, PAGE)))
    assert all(region.offset % ALIGNMENT == 0 for region in small)
    assert large.offset % PAGE == 0
    data = (tmp_path / "w").read_bytes()
    assert (store.size, store.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_equal_bytes_are_stored_once_whatever_holds_them(tmp_path: Path) -> None:
    array = RNG.standard_normal(3000)
    with WeightStore(tmp_path / "w") as store:
        regions = {
            store.add(ir.tensor(array)),
            store.add(ir.tensor(array.copy())),
            store.add(lazy(array)),
            store.add(external(tmp_path / "e", array, 12)),
        }
        assert len(regions) == 1
        other = store.add(ir.tensor(array + 1))
    data = (tmp_path / "w").read_bytes()
    assert store.size == len(data) == other.offset + other.length
    assert store.sha256 == hashlib.sha256(data).hexdigest()


def test_same_bytes_under_another_dtype_may_share_a_region(tmp_path: Path) -> None:
    with WeightStore(tmp_path / "w") as store:
        assert store.add(ir.tensor(np.zeros(8, np.float32))) == store.add(ir.tensor(np.zeros(8, np.int32)))


def test_a_lazy_tensor_is_evaluated_once(tmp_path: Path) -> None:
    calls = []

    def make() -> ir.TensorProtocol:
        calls.append(1)
        return ir.tensor(np.ones(100))

    tensor = ir.LazyTensor(make, dtype=ir.DataType.DOUBLE, shape=ir.Shape((100,)))
    with WeightStore(tmp_path / "w") as store:
        assert store.add(tensor) == store.add(tensor)
    assert len(calls) == 1


def test_source_file_that_ends_too_soon_is_named(tmp_path: Path) -> None:
    tensor = external(tmp_path / "short", np.ones(1000))
    (tmp_path / "short").write_bytes(b"x" * 7999)
    with WeightStore(tmp_path / "w") as store, pytest.raises(ModelError, match="short: ends 1 bytes before"):
        store.add(tensor)


def test_place_that_can_not_be_written_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="can't be written"):
        WeightStore(tmp_path / "none" / "w")


def test_full_disk_is_an_artifact_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(ArtifactError, match="No space left"):
        WeightStore(Path("/dev/full")).add(ir.tensor(np.ones(100)))


MEASURE = """
import sys
from pathlib import Path
import numpy as np, onnx_ir as ir
from miaotui.compiler.weights import WeightStore
from miaotui.runtime.conditions import peak_rss
folder = Path(sys.argv[1])
before = peak_rss()
with WeightStore(folder / "w") as store:
    for offset in range(0, 512 << 20, 64 << 20):
        store.add(ir.ExternalTensor("e", offset, 64 << 20, ir.DataType.UINT8, shape=ir.Shape((64 << 20,)),
                                    name=str(offset), base_dir=folder))
print((peak_rss() - before) >> 20, store.size >> 20)
"""


def test_copying_files_takes_constant_memory(tmp_path: Path) -> None:
    with (tmp_path / "e").open("wb") as file:
        for number in range(8):
            file.write(bytes([number]) * (64 << 20))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, size = map(int, done.stdout.split())
    assert size == 512
    assert grown < 32
