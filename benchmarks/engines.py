"""Decoders of one sequence behind one interface: ours, llama.cpp, onnxruntime-genai and OpenVINO."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import miaotui
import numpy as np

Array = np.ndarray[Any, Any]


class Engine(Protocol):
    """A decoder of one sequence, greedy."""

    def prefill(self, ids: Sequence[int]) -> None:
        """Start anew with ``ids`` and compute the next token's logits."""

    def step(self) -> None:
        """Append the most likely token and compute the next logits."""


class Ours:
    """An executable folder through the decoder that ``generate`` uses; room for ``context`` tokens."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        self._executable = miaotui.open(folder)
        self._generator = self._executable.generator(threads=threads)
        self._context = context
        self._decoder = self._generator.begin([[1]], context)

    def prefill(self, ids: Sequence[int]) -> None:
        self._decoder = self._generator.begin([list(ids)], self._context - len(ids), self._decoder)

    def step(self) -> None:
        self._decoder.step()
        self._decoder.tokens.tolist()


class LlamaCpp:
    """A GGUF file under llama.cpp, through its C interface; flash attention as it chooses itself."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        lib = self._lib = import_module("llama_cpp")
        lib.llama_log_set(_SILENT, ctypes.c_void_p(0))
        settings = lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = lib.llama_load_model_from_file(str(path).encode(), settings)
        options = lib.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, 2048, 512
        options.n_threads = options.n_threads_batch = threads
        self._context = lib.llama_new_context_with_model(self._model, options)
        self._vocabulary = lib.llama_n_vocab(lib.llama_model_get_vocab(self._model))
        self._next = 0

    def prefill(self, ids: Sequence[int]) -> None:
        lib = self._lib
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        self._decode(ids)

    def step(self) -> None:
        self._decode([self._next])

    def _decode(self, ids: Sequence[int]) -> None:
        lib, tokens = self._lib, (ctypes.c_int32 * len(ids))(*ids)
        if lib.llama_decode(self._context, lib.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit("llama.cpp refused to decode")
        logits = lib.llama_get_logits_ith(self._context, -1)
        self._next = int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

    def logits(self, ids: Sequence[int]) -> Array:
        """float32[tokens, vocabulary]: after every token."""
        lib, count = self._lib, len(ids)
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        batch = lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, True
        if lib.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp refused to decode")
        width = self._vocabulary
        rows = [lib.llama_get_logits_ith(self._context, i) for i in range(count)]
        found = np.stack([np.ctypeslib.as_array(row, (width,)).copy() for row in rows])
        lib.llama_batch_free(batch)
        return found


def _silent(level: int, text: bytes, data: object) -> None:
    """Takes llama.cpp's log."""


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_silent)


class Genai:
    """A folder of onnxruntime-genai's model builder."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        og = import_module("onnxruntime_genai")

        config = og.Config(str(folder))
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(options))
        self._og, self._model, self._context = og, og.Model(config), context
        self._generator: Any = None

    def prefill(self, ids: Sequence[int]) -> None:
        og, self._generator = self._og, None
        parameters = og.GeneratorParams(self._model)
        # as the shortest too, or the end token would stop it
        parameters.set_search_options(do_sample=False, max_length=self._context, min_length=self._context)
        self._generator = og.Generator(self._model, parameters)
        self._generator.append_tokens(np.asarray([ids], np.int32))
        self._generator.generate_next_token()  # chooses from the prompt's logits, computes none

    def step(self) -> None:
        self._generator.generate_next_token()


class OpenVino:
    """The model that OpenVINO GenAI makes of a GGUF file, with OpenVINO's default cache and kernels."""

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        ov = import_module("openvino")

        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        model = ov.Core().read_model(folder / "openvino_model.xml")
        self._request = ov.Core().compile_model(model, "CPU", hints).create_infer_request()
        self._length = 0
        self._next = 0

    def prefill(self, ids: Sequence[int]) -> None:
        self._request.reset_state()
        self._length = 0
        self._infer(ids)

    def step(self) -> None:
        self._infer([self._next])

    def _infer(self, ids: Sequence[int]) -> None:
        end = self._length + len(ids)
        inputs = {
            "input_ids": np.asarray([ids], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self._length, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        logits = self._request.infer(inputs, share_inputs=True, share_outputs=True)["logits"]
        self._next, self._length = int(logits[0, -1].argmax()), end


def genai_folder(work: Path, source: Path, precision: str) -> Path | None:
    """onnxruntime-genai's folder for a precision; None if it is not installed."""
    spec = find_spec("onnxruntime_genai")
    if spec is None or spec.origin is None:
        return None
    folder = work / f"genai-{precision}"
    if not (folder / "genai_config.json").is_file():
        models = Path(spec.origin).parent / "models"
        command = [sys.executable, str(models / "builder.py"), "-i", str(source), "-o", str(folder)]
        command += ["-p", precision, "-e", "cpu", "-c", str(work / "cache")]
        command += ["--extra_options", "int4_accuracy_level=4"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder


def requantized(work: Path, source: Path, kind: str) -> Path | None:
    """``source`` as a GGUF file of type ``kind`` (``Q4_0``, ``Q8_0``); None without llama.cpp."""
    if find_spec("llama_cpp") is None:
        return None
    path = work / f"{kind.lower()}.gguf"
    if not path.is_file():
        lib = import_module("llama_cpp")
        settings = lib.llama_model_quantize_default_params()
        settings.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
        settings.allow_requantize = True
        lib.llama_log_set(_SILENT, ctypes.c_void_p(0))
        if lib.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(settings)):
            raise SystemExit(f"llama.cpp could not write {path}")
    return path


def openvino_folder(work: Path, gguf: Path | None) -> Path | None:
    """OpenVINO GenAI's form of a GGUF file; None if OpenVINO GenAI is not installed."""
    if gguf is None or find_spec("openvino_genai") is None:
        return None
    folder = work / f"openvino-{gguf.stem}"
    if not (folder / "openvino_model.xml").is_file():
        code = "import sys, openvino_genai as g; g.LLMPipeline(sys.argv[1], 'CPU', enable_save_ov_model=True)"
        subprocess.run([sys.executable, "-c", code, str(gguf)], check=True, stdout=subprocess.DEVNULL)
        folder.mkdir(exist_ok=True)
        for name in ("openvino_model.xml", "openvino_model.bin"):
            (gguf.parent / name).replace(folder / name)
    return folder
