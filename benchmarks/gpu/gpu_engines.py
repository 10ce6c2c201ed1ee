"""Engines of the GPU check: miaotui, transformers eager, torch.compile, the plain export."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, Protocol

import miaotui
import numpy as np
from miaotui.runtime.generate.decoder import capacity_for


class Engine(Protocol):
    """Continues ``batch`` prompts. Every call returns when its token ids are on the host."""

    def prefill(self, prompts: np.ndarray[Any, Any], new: int = 1) -> None:
        """Take int64[batch, tokens] in, forgetting what was there; room for ``new`` tokens."""
        ...

    def step(self) -> None:
        """One token more for every row."""
        ...

    def close(self) -> None:
        """Free its memory."""
        ...


class Ours:
    """A compiled folder; ``refusal``: why its steps are not captured, empty if they are.

    ``disable``: passes to leave out.
    """

    def __init__(
        self, folder: Path, target: str, precision: str, backend: str = "ort", disable: tuple[str, ...] = ()
    ) -> None:
        self._exe = miaotui.compile(
            str(folder), target=target, precision=precision, backend=backend, verify=False, timing=0.0,
            keep_source=False, strict=False,
            # the weights are random: there is nothing to calibrate on
            enable=("quantize-weights{method=rtn}",) if precision == "int4" else (), disable=disable,
        )  # fmt: skip
        self._generator = self._exe.generator()
        self._decoder: Any = None

    @property
    def refusal(self) -> str:
        """Why ONNX Runtime does not capture its steps."""
        return str(getattr(self._generator.runner, "refusal", ""))

    def prefill(self, prompts: np.ndarray[Any, Any], new: int = 1) -> None:
        """Through the generator's own buffers."""
        held = self._decoder if self._decoder is not None and self._decoder.rows == len(prompts) else None
        self._decoder = self._generator.begin(prompts.tolist(), new, held)
        self._decoder.tokens.tolist()

    def step(self) -> None:
        """One replayed step, and its ids."""
        self._decoder.step()
        self._decoder.tokens.tolist()

    def close(self) -> None:
        """Free the sessions."""
        self._decoder = None
        self._exe.close()
        gc.collect()


class Torch:
    """transformers with a static cache. ``compiled``: forward through torch.compile with CUDA graphs.

    ``backend``: of torch.compile; ``"eager"`` for a trial without a compiler.
    """

    def __init__(self, model: Any, device: str, *, compiled: bool, backend: str = "inductor") -> None:
        import torch

        self._torch, self._model, self._device = torch, model, device
        options: dict[str, Any] = {"mode": "reduce-overhead"} if backend == "inductor" else {}
        self._one = (
            torch.compile(model.forward, fullgraph=True, backend=backend, **options)
            if compiled
            else model.forward
        )
        self._cache: Any = None
        self._holds = (0, 0)

    def prefill(self, prompts: np.ndarray[Any, Any], new: int = 1) -> None:
        """Eager in both: what is compiled is the step."""
        from transformers import StaticCache

        torch = self._torch
        with torch.no_grad():
            # as much room as miaotui's buckets have: both look at all of it in every step
            needs = len(prompts), capacity_for(prompts.shape[1] + new, None)
            if self._cache is None or self._holds != needs:
                self._cache = StaticCache(config=self._model.config, max_cache_len=needs[1])
            else:
                self._cache.reset()
            self._holds = needs
            ids = torch.from_numpy(prompts).to(self._device)
            self._at = torch.tensor([ids.shape[1]], device=self._device)
            positions = torch.arange(ids.shape[1], device=self._device)
            logits = self._call(self._model.forward, ids, positions, logits_to_keep=1)
            self._tokens = logits[:, -1:].argmax(-1)
            self._tokens.tolist()

    def step(self) -> None:
        """One forward of one token a row."""
        torch = self._torch
        with torch.no_grad():
            if self._one is not self._model.forward:
                torch.compiler.cudagraph_mark_step_begin()
            logits = self._call(self._one, self._tokens, self._at)
            self._tokens = logits[:, -1:].argmax(-1).clone()
            self._at += 1
            self._tokens.tolist()

    def _call(self, forward: Any, ids: Any, positions: Any, **options: Any) -> Any:
        return forward(
            input_ids=ids, position_ids=positions[None].expand(len(ids), -1), past_key_values=self._cache,
            use_cache=True, **options,
        ).logits  # fmt: skip

    def close(self) -> None:
        """Free cache and compiled code."""
        self._cache = self._one = None
        self._torch._dynamo.reset()
        gc.collect()
        if self._device == "cuda":
            self._torch.cuda.empty_cache()


class Plain:
    """The plain export, ids to logits without a cache: every step runs the whole text again."""

    def __init__(self, model: Any, provider: str, folder: Path) -> None:
        import onnxruntime
        import torch

        path = folder / "plain.onnx"
        ids = torch.zeros((2, 8), dtype=torch.int64, device=model.device)
        dims = {"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}}
        exported = torch.onnx.export(
            _Logits(model), (), kwargs={"input_ids": ids}, dynamo=True, dynamic_shapes=dims,
            verbose=False,
        )  # fmt: skip
        assert exported is not None
        exported.save(path, external_data=True)
        if hasattr(onnxruntime, "preload_dlls") and provider.startswith("CUDA"):
            onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(path, options, providers=[provider])
        if self._session.get_providers()[0] != provider:
            raise SystemExit(f"{provider} could not start: see miaotui doctor")
        self._device = "cuda" if provider.startswith("CUDA") else "cpu"

    def prefill(self, prompts: np.ndarray[Any, Any], new: int = 1) -> None:
        """Run the prompts whole; the logits stay on the device, as theirs do."""
        self._text = prompts
        self._run()

    def step(self) -> None:
        """Run the whole text with one token more."""
        more = np.ones((len(self._text), 1), np.int64)
        self._text = np.concatenate([self._text, more], 1)
        self._run()

    def _run(self) -> None:
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._session.get_inputs()[0].name, np.ascontiguousarray(self._text))
        binding.bind_output(self._session.get_outputs()[0].name, self._device)
        self._session.run_with_iobinding(binding)

    def close(self) -> None:
        """Free the session."""
        self._session = None
        gc.collect()


def _Logits(model: Any) -> Any:  # noqa: N802 - a class made where torch is loaded
    import torch

    class Logits(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> Any:
            return self.model(input_ids=input_ids, use_cache=False).logits

    return Logits().eval()
