"""Executable: an opened folder that runs, is called like its source, is timed and is verified."""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any, cast, overload

from ..compiler.artifact import WEIGHTS, Artifact
from ..compiler.closing import Closing
from ..compiler.draft import copy
from ..compiler.errors import ArtifactError, CompileError, OptionError
from ..compiler.manifest import Entry, Manifest
from ..compiler.options import Target
from ..compiler.program import TensorSpec
from ..compiler.reference import Array, Arrays, Reference
from .base import Runner
from .bench import BenchResult, Candidate, bench
from .call import default_call, flatten, unflatten
from .compare import Limit
from .counters import counters_of
from .generate import Conversation, Generation, GenerationOptions, Generator, Stream
from .generate.bench import GenerationBench, bench_generation, workloads
from .parallel.options import ParallelOptions
from .samples import sample_inputs
from .session import model_of, open_runner
from .tensors import fitted
from .text import Answer, Classification, Text, TextEncoder, answer, classify, embed
from .validate import checked
from .verify import GoldenReference, Verification, layer_values, verification

__all__ = ["Executable", "Verification", "open_executable"]

SOURCE = "source"
"""Name of the variant that is the model as imported: the baseline of ``bench``."""

Resolve = Callable[[object], Reference]


def open_executable(
    folder: str | PathLike[str],
    resolve_reference: Resolve | None = None,
    *,
    temporary: bool = False,
    parallel: ParallelOptions | None = None,
) -> Executable:
    """Open an executable folder. Raises: ArtifactError if it is missing, damaged or not ours."""
    return Executable(Artifact(Path(folder)), resolve_reference, temporary=temporary, parallel=parallel)


class Executable(Closing):
    """An executable folder, opened. Sessions start when first needed; calls may come from several threads.

    ``resolve_reference`` makes a Reference from whatever ``verify`` is given. ``temporary``: the folder is
    removed with the Executable. ``parallel``: what runs the ranks of partitioned variants; threads if None.
    """

    def __init__(
        self,
        artifact: Artifact,
        resolve_reference: Resolve | None = None,
        *,
        temporary: bool = False,
        parallel: ParallelOptions | None = None,
    ) -> None:
        self._artifact = artifact
        self._parallel = parallel
        self._resolve = resolve_reference
        self._runners: dict[tuple[str, str, int | None], Runner] = {}
        self._generators: dict[tuple[str, int | None], Generator] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._remove = weakref.finalize(self, shutil.rmtree, artifact.folder, True) if temporary else None

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._artifact.folder

    @property
    def manifest(self) -> Manifest:
        """Everything known about it."""
        return self._artifact.manifest

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """Signature of the main entry's inputs."""
        return self._main.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Signature of the main entry's outputs."""
        return self._main.outputs

    @property
    def report(self) -> dict[str, Any]:
        """What the compile did, as it was reported. Raises: ArtifactError if the report is damaged."""
        path = self.folder / "report.json"
        if path.name not in self.manifest.files:
            return {}
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(str(path), f"can't be read: {error}", "compile the model again") from error
        return data

    def run(self, inputs: Mapping[str, Any], variant: str | None = None, *, entry: str = "main") -> Arrays:
        """Outputs by name for ``inputs``, arrays or tensors by name.

        Raises: InputError listing every input that does not fit.
        """
        return self.runner(variant, entry=entry).run(inputs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the source model takes and returns; inputs by name or position if it had no signature.

        Raises: InputError listing every argument that does not fit.
        """
        call = self.manifest.call or default_call(self.inputs, self.outputs)
        return unflatten(call, self.run(flatten(call, args, kwargs)))

    def runner(
        self, variant: str | None = None, *, entry: str = "main", threads: int | None = None
    ) -> Runner:
        """The runner of a variant, opened once for each count of threads; closed with the Executable."""
        name, _ = self._artifact.variant(variant)
        with self._lock:
            if self._closed:
                raise CompileError(self.folder.name, "was closed", "open it again")
            key = (name, entry, threads)
            if key not in self._runners:
                self._runners[key] = open_runner(
                    self._artifact, name, entry=entry, threads=threads, parallel=self._parallel
                )
            return self._runners[key]

    @overload
    def generate(
        self,
        prompt: str,
        *,
        rows: int = 8,
        variant: str | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: object,
        *,
        rows: int = 8,
        variant: str | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> Any: ...

    def generate(
        self,
        prompt: object,
        *,
        rows: int = 8,
        variant: str | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> Any:
        """Continue a prompt: text, a list of tokens, or messages (``{"role": "user", "content": "…"}``).

        A Generation; for a list of prompts a list of them, ``rows`` run together. ``options`` are the fields
        of GenerationOptions: ``max_tokens``, ``temperature`` (0, the default, is greedy), ``stop``, …
        Raises: InputError for prompts that do not fit, UnsupportedError if the model keeps no state.
        """
        generator = self.generator(variant, threads=threads)
        return generator.generate(prompt, GenerationOptions.of(options), rows)

    def stream(
        self, prompt: object, *, variant: str | None = None, threads: int | None = None, **options: Any
    ) -> Stream:
        """The text of ``generate`` in pieces as it is written; ``result`` of the Stream is the Generation."""
        return self.generator(variant, threads=threads).stream(prompt, GenerationOptions.of(options))

    def chat(
        self,
        system: str | None = None,
        *,
        variant: str | None = None,
        threads: int | None = None,
        **options: Any,
    ) -> Conversation:
        """A new conversation, by the model's chat template; ``options`` as in ``generate``."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        return Conversation(self.generator(variant, threads=threads), messages, **options)

    def logits(self, prompt: object, *, variant: str | None = None, threads: int | None = None) -> Array:
        """float32[tokens, vocabulary]: the logits after every token of a prompt."""
        return self.generator(variant, threads=threads).logits(prompt)

    def generator(self, variant: str | None = None, *, threads: int | None = None) -> Generator:
        """What continues text with a variant; made once for each count of threads.

        Raises: UnsupportedError if the variant keeps no state between tokens, with the reason.
        """
        name, _ = self._artifact.variant(variant)
        with self._lock:
            if (name, threads) not in self._generators:
                open_entry = partial(self._entry_runner, name, threads)
                self._generators[name, threads] = Generator(self._artifact, name, open_entry)
            return self._generators[name, threads]

    def _entry_runner(self, variant: str, threads: int | None, entry: str) -> Runner:
        return self.runner(variant, entry=entry, threads=threads)

    def embed(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = 32,
        prompt: str | None = None,
        variant: str | None = None,
        threads: int | None = None,
    ) -> Array:
        """float32[texts, width]: sentence embeddings, for models of sentence-transformers.

        ``prompt``: name of what the model wants in front of a text (``query``, ``document``).
        Raises: UnsupportedError if the model makes none, InputError for anything but a list of texts.
        """
        run = self.runner(variant, threads=threads).run
        return embed(self._text_encoder, texts, run, batch_size, prompt)

    def classify(
        self,
        texts: Iterable[Text],
        *,
        batch_size: int = 32,
        variant: str | None = None,
        threads: int | None = None,
    ) -> list[Classification]:
        """The labels of texts, or of pairs of texts, with their scores.

        Raises: UnsupportedError if the model is no classifier, InputError for anything but a list of texts.
        """
        run = self.runner(variant, threads=threads).run
        return classify(self._text_encoder, texts, run, batch_size)

    def answer(
        self, question: str, context: str, *, variant: str | None = None, threads: int | None = None
    ) -> Answer:
        """The part of ``context`` that answers ``question``; long contexts are read in windows.

        Raises: UnsupportedError if the model finds no answers, InputError for empty texts.
        """
        return answer(self._text_encoder, question, context, self.runner(variant, threads=threads).run)

    @cached_property
    def _text_encoder(self) -> TextEncoder:
        return TextEncoder(self._artifact)

    def bench(
        self,
        against: Executable | str | PathLike[str] | None = None,
        *,
        runs: int = 50,
        seconds: float | None = None,
        threads: int | None = None,
        inputs: Mapping[str, Any] | None = None,
        sizes: Mapping[str, int] | None = None,
        together: bool | None = None,
    ) -> BenchResult:
        """Time the default variant, interleaved with ``against``.

        ``against``: another Executable, a variant of this one, or a folder; None is the source variant if
        it was kept, else nothing. ``sizes``: named dimensions, ``{"batch": 8}``. ``together``: see ``bench``.
        Raises: InputError if the inputs don't fit.
        """
        name, record = self._artifact.variant()
        if inputs is None:
            golden = self._artifact.golden()
            inputs = sample_inputs(self.inputs, self.manifest.dims, golden[0] if golden else None, sizes)
        elif sizes:
            raise OptionError("sizes", "can't be given together with inputs", "give one of them")
        with ExitStack() as stack:
            candidates = [self._candidate(name, name, threads)]
            if (other := self._opponent(against, name, stack)) is not None:
                label = other[1] if other[0] is self else f"{other[0].folder.name} ({other[1]})"
                label = f"{label} (again)" if label == name else label
                candidates.append(other[0]._candidate(label, other[1], threads))
            return bench(
                candidates,
                checked(inputs, self.inputs, self.manifest.dims),
                runs=runs,
                seconds=seconds,
                target=Target.parse(record.target),
                threads=threads,
                together=together,
                counters=counters_of(Target.parse(record.target)),
            )

    def bench_generation(
        self,
        against: Executable | str | PathLike[str] | None = None,
        *,
        prompt: Sequence[int] = (512,),
        new: Sequence[int] = (128,),
        batch: Sequence[int] = (1,),
        repeats: int = 6,
        threads: int | None = None,
    ) -> GenerationBench:
        """Time prefill and decode for every combination of prompt tokens, new tokens and rows.

        ``against``: another Executable, a variant of this one, or a folder; repeats are interleaved with it.
        Raises: UnsupportedError if one of them keeps no state, OptionError for sizes that don't fit.
        """
        name, asked = self.manifest.default, workloads(prompt, new, batch)
        with ExitStack() as stack:
            candidates = {name: self.generator(name, threads=threads)}
            if against is not None and (other := self._opponent(against, name, stack)) is not None:
                label = other[1] if other[0] is self else f"{other[0].folder.name} ({other[1]})"
                label = f"{label} (again)" if label == name else label
                candidates[label] = other[0].generator(other[1], threads=threads)
            target = Target.parse(self.manifest.variants[name].target)
            return bench_generation(candidates, asked, repeats=repeats, target=target, threads=threads)

    def _opponent(
        self, against: Executable | str | PathLike[str] | None, name: str, stack: ExitStack
    ) -> tuple[Executable, str] | None:
        """Whom to time against, and which variant of it; a folder is opened for as long as ``stack``."""
        if against is None:
            return (self, SOURCE) if SOURCE in self.manifest.variants and name != SOURCE else None
        if isinstance(against, Executable):
            return against, against.manifest.default
        if isinstance(against, str) and (against in self.manifest.variants or not Path(against).exists()):
            return self, self._artifact.variant(against)[0]
        opened = stack.enter_context(open_executable(against))
        return opened, opened.manifest.default

    def _candidate(self, label: str, variant: str, threads: int | None) -> Candidate:
        sizes = {name: record.size for name, record in self.manifest.files.items()}
        own = sum(size for name, size in sizes.items() if name.startswith(f"variants/{variant}/"))
        return Candidate(
            label,
            lambda: open_runner(self._artifact, variant, threads=threads, parallel=self._parallel),
            max(own, sizes.get(WEIGHTS, 0)),  # ranks and packed weights lie with their variant
        )

    def verify(
        self,
        reference: object = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        tolerance: float | None = None,
        variant: str | None = None,
        layers: bool = True,
    ) -> Verification:
        """Compare a variant with ``reference``: a Reference, or a source model or path.

        None compares with the golden outputs. ``inputs``: None takes the golden ones. ``tolerance``: greatest
        scaled error; None takes the one the executable was certified with. ``layers``: also compare the
        layers that both sides know. Raises: ArtifactError if there is no golden data to take.
        """
        name, _ = self._artifact.variant(variant)
        golden = self._artifact.golden()
        source = self._reference(reference, golden, inputs)
        specs = self.manifest.signature(role=self.manifest.variants[name].role).inputs
        if inputs is None:
            inputs = sample_inputs(specs, self.manifest.dims, golden[0] if golden else None)
        arrays = checked(fitted(inputs, specs), specs, self.manifest.dims)
        table = layer_values(self._artifact, name) if layers and reference is not None else {}
        if table:
            with open_runner(self._artifact, name, taps=list(table.values())) as runner:
                outputs = runner.run(arrays)
        else:
            outputs = self.run(arrays, name)
        limit = self.limit(tolerance)
        given = fitted(arrays, self.manifest.signature(role=SOURCE).inputs)
        found = verification(source, name, given, outputs, limit=limit, layers=table)
        if layers and reference is not None and not model_of(self._artifact, name).computed():
            return replace(found, note=f"{name} keeps no inner values to compare layers by")
        return found

    @property
    def tolerance(self) -> float:
        """The error the executable was certified with, else the one of its precision."""
        return self.limit().figure

    def limit(self, tolerance: float | None = None) -> Limit:
        """What decides whether outputs are right; ``tolerance`` replaces its figure."""
        manifest = self.manifest
        precision, certificate = str(manifest.options.get("precision", "fp32")), manifest.certificate
        if certificate is None:
            return Limit.of(precision, budget=tolerance)
        figure = certificate.tolerance if tolerance is None else tolerance
        if certificate.metric == "kl" and manifest.decoding is not None:
            return Limit(figure, figure, manifest.decoding.vocabulary)
        return Limit(figure)

    def _reference(
        self, reference: object, golden: tuple[Arrays, Arrays] | None, inputs: object
    ) -> Reference:
        if reference is None:
            if golden is None or inputs is not None:
                fact = "keeps no source outputs for these inputs"
                raise ArtifactError(str(self.folder), fact, "give the source model as reference")
            framework = self.manifest.source.get("framework", "source")
            return GoldenReference(golden[1], f"golden outputs of {framework}")
        if all(hasattr(reference, name) for name in ("name", "run", "layers")):
            return cast(Reference, reference)
        if self._resolve is None:
            raise OptionError(
                "reference", f"{type(reference).__name__} is no Reference", "open it with miaotui.open"
            )
        return self._resolve(reference)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the executable as ``folder``, every file checked. Raises: ArtifactError if it can't be."""
        copy(self._artifact, Path(folder))

    def close(self) -> None:
        """Close all sessions; a temporary folder is removed."""
        with self._lock:
            self._closed = True
            for runner in self._runners.values():
                runner.close()
            self._runners.clear()
            self._generators.clear()
        self._artifact.close()
        if self._remove is not None:
            self._remove()

    def __repr__(self) -> str:
        signature = f"({', '.join(map(str, self.inputs))}) -> ({', '.join(map(str, self.outputs))})"
        return f"<Executable {self.manifest.name} {signature}>"

    @property
    def _main(self) -> Entry:
        return self.manifest.entries["main"]
