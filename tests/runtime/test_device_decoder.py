"""The decoder over static device buffers, on the CPU's memory: what it writes, and that nothing moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from miaotui.compiler.artifact import Artifact
from miaotui.compiler.errors import CompileError, DeviceError
from miaotui.runtime.device_memory import Buffer, Mirrored
from miaotui.runtime.generate import GenerationOptions
from miaotui.runtime.generate.buckets import Buckets
from miaotui.runtime.generate.decoder import Decoder
from miaotui.runtime.generate.device_decoder import DeviceDecoder
from miaotui.runtime.generate.generator import Generator
from miaotui.runtime.onnxruntime import OnnxRuntimeModel, OnnxRuntimeRunner
from miaotui.runtime.onnxruntime_memory import GRAPH, OrtMemory
from miaotui.runtime.session import model_of
from miaotui.runtime.stepwise import StepwiseRunner
from support.decoders import Attention, Tiny, write_decoder

IDS = list(b"Once upon a time")


class Recorded(OrtMemory):
    """Main memory that counts what is allocated, written and read, and with which options it runs."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.made: list[Buffer] = []
        self.sent = self.fetched = self.bound = 0
        self.graphs: list[int | None] = []
        self.full = False

    def empty(self, shape: Sequence[int], dtype: ir.DataType) -> Buffer:
        if self.full:
            raise DeviceError("m", "out of device memory")
        self.made.append(super().empty(shape, dtype))
        return self.made[-1]

    def write(self, buffer: Buffer, array: np.ndarray) -> None:
        self.sent += 1
        super().write(buffer, array)

    def read(self, buffer: Buffer) -> np.ndarray:
        self.fetched += 1
        return super().read(buffer)

    def bind(self, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> Any:
        self.bound += 1
        return super().bind(inputs, outputs)

    def run(self, binding: Any, graph: int | None = None) -> None:
        self.graphs.append(graph)
        super().run(binding, graph)


class Opened:
    """A small decoder's entry with state, opened as it is on a device."""

    def __init__(
        self,
        folder: Path,
        tiny: Tiny,
        in_place: bool = True,
        captures: bool = False,
        row_by_row: bool = False,
    ) -> None:
        write_decoder(folder, tiny)
        self.artifact = Artifact(folder)
        model = model_of(self.artifact, entry="decode")
        assert isinstance(model, OnnxRuntimeModel) and model.stepping is None
        self.runner = OnnxRuntimeRunner(replace(model, stepping="past_lengths"), threads=1)
        import onnxruntime as ort

        self.memory = Recorded(
            ort, self.runner._session, "cpu", "CPUExecutionProvider", "m", captures=captures
        )
        decoding, specs = tiny.decoding(), (*self.runner.inputs, *self.runner.outputs)
        self.buckets = Buckets(self.memory, decoding, specs, in_place=in_place, row_by_row=row_by_row)

    def decoder(self, rows: int = 1, capacity: int = 1) -> DeviceDecoder:
        return DeviceDecoder(self.buckets, rows=rows, capacity=capacity)


@contextmanager
def opened(path: Path, tiny: Tiny, **options: bool) -> Iterator[Opened]:
    made = Opened(path / "tiny.miaotui", tiny, **options)
    with made.runner:
        yield made
    made.artifact.close()


def written(decoder: Any, count: int) -> list[list[int]]:
    """The tokens of every row, the first from the prompt."""
    rows = [[int(t)] for t in decoder.tokens[:, 0]]
    for _ in range(count - 1):
        decoder.step()
        for row, token in zip(rows, decoder.tokens[:, 0], strict=True):
            row.append(int(token))
    return rows


@pytest.mark.parametrize("attention", ["gqa", "standard"])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("chunk", [3, 512])
def test_rows_of_different_lengths_equal_the_whole_model(
    tmp_path: Path, attention: Attention, in_place: bool, chunk: int
) -> None:
    tiny = Tiny(attention)
    prompts = [IDS, IDS[:3], IDS[:9]]
    with opened(tmp_path, tiny, in_place=in_place) as made:
        decoder = made.decoder(rows=3)
        for row, ids in enumerate(prompts):
            decoder.prefill(row, ids, chunk)
        assert written(decoder, 60) == [tiny.greedy(ids, 60) for ids in prompts]
        assert decoder.capacity == 128  # grown from 64 on the way
        assert decoder.logits == pytest.approx(
            np.stack([tiny.logits([*ids, *tiny.greedy(ids, 59)])[-1] for ids in prompts]), abs=1e-3
        )


def test_prompts_in_one_run_and_drafts_equal_the_decoder_on_arrays(tmp_path: Path) -> None:
    tiny = Tiny()
    with opened(tmp_path, tiny) as made:
        arrays = Decoder(made.runner, tiny.decoding(), rows=2, in_place=True)
        device = made.decoder(rows=2)
        for decoder in (arrays, device):
            decoder.prefill_together([IDS, IDS[:5]])
        assert written(device, 10) == written(arrays, 10)
        single = made.decoder()
        single.prefill(0, IDS)
        logits, likeliest = single.extend([1, 2, 3])
        assert logits == pytest.approx(tiny.logits([*IDS, 1, 2, 3])[-3:], abs=1e-4)
        assert likeliest.tolist() == logits.argmax(1).tolist()
        single.lengths += 1  # the first of the three is kept
        single.tokens[0, 0] = 7
        single.step()
        assert int(single.tokens[0, 0]) == tiny.greedy([*IDS, 1, 7], 1)[0]


@pytest.mark.parametrize("in_place", [True, False])
def test_rows_of_a_kernel_that_takes_several_tokens_of_one_row_only(tmp_path: Path, in_place: bool) -> None:
    tiny = Tiny("capacity")
    prompts = [IDS, IDS[:4], IDS[:9]]
    expected = [tiny.greedy(ids, 40) for ids in prompts]
    with opened(tmp_path, tiny, in_place=in_place, row_by_row=True) as made:
        together, alone = made.decoder(rows=3), made.decoder(rows=3)
        together.prefill_together(prompts)
        assert together.capacity == 64 > len(IDS)
        for row, ids in enumerate(prompts):
            alone.prefill(row, ids, chunk=5)
        for decoder in (together, alone):
            assert written(decoder, 40) == expected
        alone.keep([2])
        logits, _ = alone.extend([expected[2][-1], 1, 2])
        assert logits == pytest.approx(tiny.logits([*IDS[:9], *expected[2], 1, 2])[-3:], abs=1e-3)


def test_prompts_that_fill_the_buckets_or_are_one_token_need_no_buffers_of_their_own(tmp_path: Path) -> None:
    tiny = Tiny("capacity")
    with opened(tmp_path, tiny, row_by_row=True) as made:
        decoder = made.decoder(rows=2)
        for length in (64, 1):
            decoder.lengths[:] = 0
            decoder.prefill_together([list(range(length))] * 2)
            before = len(made.memory.made)
            decoder.lengths[:] = 0
            decoder.prefill_together([list(range(length))] * 2)
            assert len(made.memory.made) == before
            assert decoder.tokens[:, 0].tolist() == tiny.greedy(list(range(length)), 1) * 2


def test_such_a_kernel_refuses_what_it_would_compute_wrongly(tmp_path: Path) -> None:
    with opened(tmp_path, Tiny("capacity"), row_by_row=False) as made:
        decoder = made.decoder(rows=2)
        with pytest.raises(CompileError, match=r"several rows only where they fill the cache.*row by row"):
            decoder.prefill_together([IDS, IDS[:5]])


def test_a_run_of_several_tokens_of_several_rows_is_cut_into_rows(tmp_path: Path) -> None:
    tiny, random = Tiny("capacity"), np.random.default_rng(3)
    write_decoder(tmp_path / "tiny.miaotui", tiny)
    artifact = Artifact(tmp_path / "tiny.miaotui")
    model = model_of(artifact, entry="decode")
    assert isinstance(model, OnnxRuntimeModel)
    ids = random.integers(0, 200, (3, 11))
    with OnnxRuntimeRunner(replace(model, row_by_row="input_ids"), threads=1) as runner:
        stepwise = StepwiseRunner(tiny.decoding(), runner)
        found = stepwise.logits({"input_ids": ids})
        tensors = {name: torch.from_numpy(array) for name, array in feeds(tiny, ids).items()}
        assert runner.run_device(tensors)["logits"].numpy() == pytest.approx(
            runner.run(feeds(tiny, ids))["logits"], abs=1e-6
        )
    assert found == pytest.approx(np.stack([tiny.logits(row.tolist()) for row in ids]), abs=1e-3)
    with OnnxRuntimeRunner(model, threads=1) as plain, pytest.raises(CompileError, match="row by row"):
        plain.run(feeds(tiny, ids))
    artifact.close()


def feeds(tiny: Tiny, ids: Any) -> dict[str, Any]:
    """Of the entry with state, empty, with room for more tokens than ``ids`` are."""
    state = np.zeros((len(ids), tiny.kv_heads, 32, tiny.width), np.float32)
    return {
        "input_ids": ids,
        "past_lengths": np.zeros(len(ids), np.int64),
        "select": np.full((len(ids), 1), ids.shape[1] - 1),
        **{tensor.input: state for tensor in tiny.decoding().state},
    }


def test_a_step_allocates_nothing_moves_nothing_and_sends_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, Tiny()) as made:
        decoder, memory = made.decoder(rows=2), made.memory
        decoder.prefill_together([IDS, IDS[:4]])
        written(decoder, 3)
        bucket = decoder._bucket
        places = [b.address for side in bucket.sides for b in side]
        before = len(memory.made), memory.bound, memory.sent, memory.fetched
        written(decoder, 21)
        after = len(memory.made), memory.bound, memory.sent, memory.fetched
        assert after == (*before[:3], before[3] + 20)  # the host reads the ids of each step, nothing else
        assert decoder._bucket is bucket
        assert [b.address for side in bucket.sides for b in side] == places
        assert [b.owner.data_ptr() for b in memory.made] == [b.address for b in memory.made]


def test_the_host_may_change_tokens_and_stop_rows(tmp_path: Path) -> None:
    tiny = Tiny()
    with opened(tmp_path, tiny) as made:
        decoder = made.decoder(rows=2)
        decoder.prefill_together([IDS, IDS])
        decoder.tokens[1, 0] = 65
        decoder.step()
        assert decoder.tokens[:, 0].tolist() == [tiny.greedy(IDS, 2)[1], tiny.greedy([*IDS, 65], 1)[0]]
        decoder.alive[0] = 0
        sent = made.memory.sent
        held = int(decoder.lengths[0])
        rest = written(decoder, 6)[1]
        assert rest == tiny.greedy([*IDS, 65], 6) and int(decoder.lengths[0]) == held
        assert made.memory.sent > sent  # the waiting row's length, which the device has counted on
        decoder.keep([1])
        assert decoder.rows == 1 and written(decoder, 5)[0][1:] == tiny.greedy([*IDS, 65, *rest], 4)


def test_logits_are_fetched_only_where_they_are_read(tmp_path: Path) -> None:
    with opened(tmp_path, Tiny()) as made:
        decoder = made.decoder()
        decoder.prefill(0, IDS)
        written(decoder, 4)
        fetched = made.memory.fetched
        decoder.step()
        assert made.memory.fetched == fetched
        decoder.logits[0].argmax(), decoder.logits[0].max()
        assert made.memory.fetched == fetched + 1


def test_each_turn_is_a_graph_and_prompts_are_none(tmp_path: Path) -> None:
    with opened(tmp_path, Tiny(), captures=True) as made:
        memory = made.memory
        decoder = made.decoder()
        decoder.prefill(0, IDS, 8)
        assert memory.graphs == [None, None]
        written(decoder, 6)
        assert memory.graphs[2:] == [1, 2, 1, 2, 1]
        decoder.extend([1, 2])
        assert memory.graphs[-1] is None
        assert memory.options().get_run_config_entry(GRAPH) == "-1"
        assert memory.options(2).get_run_config_entry(GRAPH) == "2"
        assert memory.options(2) is memory.options(2)


def test_sessions_that_capture_nothing_have_no_run_options(tmp_path: Path) -> None:
    with opened(tmp_path, Tiny()) as made:
        decoder = made.decoder()
        decoder.prefill(0, IDS)
        written(decoder, 3)
        assert set(made.memory.graphs) == {None} and made.memory.options() is None


def test_buckets_are_used_again_with_their_graphs(tmp_path: Path) -> None:
    tiny = Tiny()
    with opened(tmp_path, tiny, captures=True) as made:
        for ids in (IDS, IDS[:5]):
            decoder = made.decoder()
            decoder.prefill(0, ids)
            assert written(decoder, 60)[0] == tiny.greedy(ids, 60)
            del decoder
        assert {graph for graph in made.memory.graphs if graph} == {1, 2, 3, 4}  # of 64 and of 128 tokens
        first, second = made.decoder(), made.decoder()
        assert first._bucket is not second._bucket


def test_without_room_to_grow_everything_is_as_it_was(tmp_path: Path) -> None:
    tiny = Tiny()
    with opened(tmp_path, tiny) as made:
        decoder = made.decoder()
        decoder.prefill(0, IDS)
        made.memory.full = True
        with pytest.raises(DeviceError, match="out of device memory"):
            decoder.reserve(100)
        assert decoder.capacity == 64 and written(decoder, 20)[0] == tiny.greedy(IDS, 20)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}, {"speculate": 4}, {"logprobs": 2}])
def test_a_generator_writes_the_same_on_both(tmp_path: Path, options: dict[str, Any]) -> None:
    with opened(tmp_path, Tiny()) as made:
        asked = GenerationOptions(max_tokens=40, **options)
        expected = Generator(made.artifact, None, lambda entry: made.runner).generate(IDS, asked)

        class Device(OnnxRuntimeRunner):
            """The same session as one of another device than the CPU."""

            device = "cuda"

            def __init__(self) -> None:
                self.__dict__ |= {**made.runner.__dict__, "memory": made.memory}
                del self.__dict__["device"]

        generator = Generator(made.artifact, None, lambda entry: Device())
        found = generator.generate(IDS, asked)
        assert made.memory.graphs and (found.ids, found.text) == (expected.ids, expected.text)
        assert generator.generate(IDS, asked).ids == expected.ids  # over the same buffers


@pytest.mark.parametrize(
    "dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT8]
)
@pytest.mark.parametrize("width", [3, 8])
def test_copies_on_the_device_keep_every_bit(tmp_path: Path, dtype: ir.DataType, width: int) -> None:
    with opened(tmp_path, Tiny()) as made:
        memory = made.memory
        old, new = memory.empty((3, 2, 5, width), dtype), memory.empty((3, 2, 9, width), dtype)
        size = old.nbytes
        bits = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        raw(old)[:] = bits
        raw(new)[:] = 77
        memory.grown(old, new)
        source, grown = (view(b, dtype) for b in (old, new))
        np.testing.assert_array_equal(grown[:, :, :5], source)
        assert not grown[:, :, 5:].any()
        picked = memory.empty((2, 2, 5, width), dtype)
        memory.gathered(old, picked, [2, 0])
        np.testing.assert_array_equal(view(picked, dtype), source[[2, 0]])
        read = memory.read(old)
        assert read.dtype == dtype.numpy() and read.tobytes() == bits.tobytes()


def raw(buffer: Buffer) -> np.ndarray:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_uint8 * buffer.nbytes).from_address(buffer.address))


def view(buffer: Buffer, dtype: ir.DataType) -> np.ndarray:
    """As bytes: [rows, heads, tokens, bytes of a head]."""
    return raw(buffer).reshape(*buffer.shape[:3], -1).copy()


def test_a_mirror_sends_only_changes_and_reads_only_what_is_new(tmp_path: Path) -> None:
    with opened(tmp_path, Tiny()) as made:
        memory = made.memory
        mirror = Mirrored(memory, (2,))
        before = memory.sent, memory.fetched
        mirror.send()
        assert mirror.array.tolist() == [0, 0] and (memory.sent, memory.fetched) == before
        mirror.array[:] = 4, 5
        mirror.send()
        mirror.send()
        assert memory.sent == before[0] + 1 and memory.read(mirror.buffer).tolist() == [4, 5]
        memory.write(mirror.buffer, np.array([6, 7]))
        mirror.written()
        assert mirror.array.tolist() == [6, 7] and mirror.array.tolist() == [6, 7]
        assert memory.fetched == before[1] + 2
