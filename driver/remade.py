"""The recipe of an executable folder, made again: source, options, what was measured, the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from ..compiler.artifact import WEIGHTS, Artifact
from ..compiler.ir.shapes import infer_shapes
from ..compiler.manifest import Manifest
from ..compiler.options import BackendName, CompileOptions, InputSpec, Target, parse_dim_range
from ..compiler.parallel.mesh import Mesh
from ..compiler.program import Program
from ..passes.pipeline import pipeline
from ..runtime.executable import SOURCE
from .compilation import measured_on, samples_for
from .context import context_of
from .lower import Recipe
from .progress import Journal, Silent
from .proof import proof_inputs
from .samples import Samples

CARRIED = ("tokenizer/", "generation_config.json")
"""How names of files begin that came with the source."""


def recorded_samples(artifact: Artifact, program: Program, options: CompileOptions) -> Samples:
    """The calibration data the folder was compiled with. Raises: InputError if its file is gone."""
    golden = artifact.golden()
    proof = [] if golden is None else proof_inputs(program, golden[0], options.seed)
    return samples_for(program, proof, options)


def recorded_recipe(
    artifact: Artifact, program: Program, options: CompileOptions, journal: Journal | None = None
) -> Recipe:
    """The pipeline that made the folder's default variant, on ``program``, its source, with its plan."""
    samples = recorded_samples(artifact, program, options)
    measured = measured_on(program, samples, options, Journal(Silent()) if journal is None else journal)
    context = replace(context_of(options), plan=artifact.manifest.plan, **measured)
    return Recipe(program, pipeline(options), context)


def source_program(artifact: Artifact) -> Program:
    """The program as imported, from the folder's source variant; weights stay in the folder's file."""
    _, record = artifact.variant(SOURCE)
    manifest = artifact.manifest
    entries = {}
    for entry, file in record.entries.items():
        model = ir.from_proto(_parsed(artifact.read(file)))
        for graph in model.graphs():
            ir.external_data.set_base_dir(graph, artifact.folder / Path(WEIGHTS).parent)
        entries[entry] = model
    program = Program(
        entries,
        dims=dict(manifest.dims),
        call=manifest.call,
        layers=dict(manifest.layers),
        source=dict(manifest.source),
        assets={name: artifact.folder / name for name in manifest.files if name.startswith(CARRIED)},
        context=None if manifest.decoding is None else manifest.decoding.context,
    )
    infer_shapes(program)
    return program


def recorded_options(manifest: Manifest) -> CompileOptions:
    """The options that decide the pipeline, as the manifest recorded them."""
    known = manifest.options
    return CompileOptions(
        target=Target.parse(known["target"]),
        backend=cast(BackendName, manifest.variants[manifest.default].backend),
        precision=known["precision"],
        sparsity=known.get("sparsity"),
        rank=known.get("rank"),
        cache=known.get("cache", "auto"),
        calib=known.get("calib"),
        budget=known.get("budget"),
        goal=known.get("goal", "speed"),
        opt=known["opt"],
        enable=tuple(known["enable"]),
        disable=tuple(known["disable"]),
        inputs=tuple(map(InputSpec.parse, known.get("inputs", ()))),
        dims=tuple(parse_dim_range(f"{name}={span}") for name, span in known.get("dims", {}).items()),
        strict=known.get("strict", True),
        threads=known["threads"],
        timing=known.get("timing", 8.0),
        keep_source=SOURCE in manifest.variants,
        seed=known.get("seed", 0),
        mesh=Mesh(**known.get("mesh", {})),
        memory=known.get("memory"),
    )


def _parsed(data: bytes) -> Any:
    import onnx

    return onnx.load_model_from_string(data)
