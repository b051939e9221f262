# SPDX-License-Identifier: Apache-2.0
"""A model as a function from images to logits, in any runtime that this machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline.artifacts import (
    INPUT_NAME,
    OUTPUT_NAME,
    EngineArtifact,
    FileDigest,
    ModelSpec,
)
from stormrt.pipeline.graph_stages import (
    FILES,
    NO_INT8,
    Int8Options,
    check_calibration,
    make_graphs,
    version,
    workstation_packages,
)
from stormrt.pipeline.probe import cuda_driver, engine_run_blocker, format_sm
from stormrt.pipeline.stage_runner import StageRunner
from stormrt.targets import Lowering, Precision, RuntimeName, Target, list_targets, load_target

if TYPE_CHECKING:
    from stormrt.pipeline.artifacts import LoweredGraphs
    from stormrt.pipeline.build import StageEvent

Predict: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images [b, 3, H, W], b at most the spec's batch -> logits [b, classes]; both FP32."""

RuntimeChoice = Literal["torch", "onnxruntime", "tensorrt"]
"""What a user can ask for. ``tensorrt`` is TensorRT or TensorRT-RTX, whichever runs here."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Executor:
    """What runs a model, and in which precision: a checked choice."""

    runtime: Literal["torch", "onnxruntime", "tensorrt", "tensorrt_rtx"]
    precision: Precision
    target: Target | None = None
    """The board that this machine is; None where no engine is built."""
    int8: Int8Options = NO_INT8
    """What INT8 is made from."""


def choose_executor(
    runtime: RuntimeChoice,
    precision: str,
    target: str | None = None,
    calibration: Path | None = None,
) -> Executor:
    """Check that a runtime can run here in a precision.

    Args:
        runtime: What was asked for.
        precision: ``fp32``, ``fp16`` or ``int8``.
        target: Recipe for the engine; None: the first for this machine's GPU.
        calibration: A table or images: of INT8, or of FP16 for values that it cannot hold.

    Raises:
        InputError: No such precision, or not by the recipe; a recipe without an engine to build;
            INT8 without a calibration, or in PyTorch, which has no Q/DQ graph; a calibration of
            FP32, or for PyTorch.
        EnvironmentMissingError: There is no GPU for an engine, or no package that runs it.
    """
    checked = _checked_precision(precision)
    check_calibration(checked, calibration)
    int8 = Int8Options(calibration)
    if checked == "int8" and runtime == "torch":
        raise InputError(
            "INT8 is a graph with Q/DQ, which PyTorch does not run",
            where="--runtime",
            got="torch",
            fix="take --runtime onnxruntime: it runs the very graph that a build makes",
        )
    if calibration is not None and runtime == "torch":
        raise InputError(
            "a calibration changes graphs, and PyTorch runs the model itself",
            where="--calibration",
            got=str(calibration),
            fix="leave it out, or take --runtime onnxruntime",
        )
    if runtime != "tensorrt":
        if target is not None:
            raise InputError(
                f"a recipe is for an engine, and {runtime} runs none",
                where="--target",
                got=target,
                fix="leave --target out, or ask for --runtime tensorrt",
            )
        return Executor(runtime, checked, int8=int8)
    recipe = _require_board(target)
    if checked not in recipe.build.precisions:
        raise InputError(
            f"target {recipe.id} has no precision {precision!r}",
            where="--precision",
            expected=" or ".join(recipe.build.precisions),
        )
    if recipe.quantization is not None:
        int8 = Int8Options(calibration, recipe.quantization.keep_float)
    return Executor(_engine_runtime(recipe), checked, recipe, int8)


def _checked_precision(precision: str) -> Precision:
    for known in get_args(Precision):
        if precision == known:
            return known  # type: ignore[no-any-return]  # a Literal's argument is its value
    raise InputError(
        "no such precision",
        where="--precision",
        got=precision,
        expected=" or ".join(get_args(Precision)),
    )


def _require_board(target: str | None) -> Target:
    """The recipe for this machine's GPU."""
    asked = None if target is None else load_target(target)
    driver = cuda_driver()
    if driver.reason is not None:
        raise EnvironmentMissingError(
            "an engine runs on its GPU alone, and there is none here",
            where="--runtime tensorrt",
            got=driver.reason,
            fix="--runtime onnxruntime runs the same graph on the CPU",
        )
    gpu = driver.gpus[0]
    if asked is not None:
        if asked.device.sm != gpu.sm:
            raise EnvironmentMissingError(
                f"target {asked.id} is another GPU than this machine's",
                where="--target",
                got=f"{gpu.name}, {format_sm(gpu.sm)}",
                expected=format_sm(asked.device.sm),
            )
        return asked
    fitting = [t for t in map(load_target, list_targets()) if t.device.sm == gpu.sm]
    if fitting:
        # Of several boards with this GPU's architecture, the one of its name and memory.
        return min(
            fitting,
            key=lambda t: (
                t.device.gpu.split()[-1] != gpu.name.split()[-1],
                abs(t.device.memory_mib - gpu.memory_mib),
            ),
        )
    raise EnvironmentMissingError(
        "there is no recipe for this machine's GPU",
        where="--runtime tensorrt",
        got=f"{gpu.name}, {format_sm(gpu.sm)}",
        fix="write one (stormrt targets show t4 is an example), and give it as --target FILE.toml",
    )


def _engine_runtime(target: Target) -> RuntimeName:
    blockers = {r.name: engine_run_blocker(r.name, target.device.sm) for r in target.runtimes}
    for name, blocker in blockers.items():
        if blocker is None:
            return name
    raise EnvironmentMissingError(
        f"nothing here runs an engine for target {target.id}",
        where="--runtime tensorrt",
        got="; ".join(f"{name}: {blocker}" for name, blocker in blockers.items()),
        fix="stormrt doctor says how to get it; --runtime onnxruntime runs the same graph on "
        "the CPU",
    )


@contextmanager
def open_predictor(
    spec: ModelSpec,
    executor: Executor,
    work: Path,
    on_stage: StageEvent = lambda *_: None,
) -> Iterator[Predict]:
    """Make what the executor runs, and hold it ready for the context.

    ``torch`` is the frozen model; FP16 computes as ``VMamba.to_fp16`` does. The others run what
    a build would: the graph through the same stages (``graph_stages``), in FP16 with its casts.

    Args:
        spec: The model.
        executor: From ``choose_executor``.
        work: Folder for graphs and engine; stages whose inputs have not changed there are skipped.
        on_stage: Told of each stage.

    Raises:
        InputError: A bad checkpoint, or a folder that cannot be written.
        EnvironmentMissingError: A package is missing.
    """
    if executor.runtime == "torch":
        yield _torch_predictor(spec, executor.precision)
        return
    run_stage = StageRunner(work, on_stage)
    if executor.runtime == "onnxruntime":
        _graphs(spec, executor, "native", run_stage, work)
        yield onnxruntime_predictor(work / FILES.native, spec)
        return
    with _engine_predictor(spec, executor, work, run_stage) as predict:
        yield predict


def _torch_predictor(spec: ModelSpec, precision: Precision) -> Predict:
    with workstation_packages():
        import torch

        from stormrt.pipeline.model_source import build_model
    model = build_model(spec)
    if precision == "fp16":
        model = model.to_fp16()
    dtype = torch.float16 if precision == "fp16" else torch.float32

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = model(torch.from_numpy(images).to(dtype))
        return np.asarray(logits.float().numpy())

    return predict


def onnxruntime_predictor(graph: Path, spec: ModelSpec) -> Predict:
    """A native graph, ready to run on the CPU.

    Raises:
        InputError: onnxruntime refuses the graph.
        EnvironmentMissingError: A package is missing.
    """
    with workstation_packages():
        from stormrt.pipeline.comparison import open_session
    session = open_session(graph.read_bytes(), str(graph))

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
        return np.asarray(logits, np.float32)

    return _in_full_batches(run, spec.batch)


def _in_full_batches(run: Predict, batch: int) -> Predict:
    """For what takes one number of images alone: fewer are filled up with the last of them."""

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        lacking = batch - len(images)
        if lacking == 0:
            return run(images)
        return run(np.concatenate([images, np.repeat(images[-1:], lacking, axis=0)]))[:-lacking]

    return predict


def _graphs(
    spec: ModelSpec, executor: Executor, lowering: Lowering, stage: StageRunner, work: Path
) -> LoweredGraphs:
    graphs = make_graphs(stage, spec, executor.precision, lowering, work, executor.int8)
    assert graphs is not None  # every stage was asked for
    return graphs


@contextmanager
def _engine_predictor(
    spec: ModelSpec, executor: Executor, work: Path, stage: StageRunner
) -> Iterator[Predict]:
    from stormrt.pipeline.device_build import PLUGIN_FOLDER, library_digests, plugin_libraries
    from stormrt.pipeline.engine import build_engine
    from stormrt.pipeline.provenance import distribution, target_digest
    from stormrt.pipeline.schema import ENGINE_NAME

    with workstation_packages():
        from stormrt.pipeline.engine_runner import open_engine

    target, runtime = executor.target, executor.runtime
    assert target is not None  # choose_executor gives engines one
    assert runtime in ("tensorrt", "tensorrt_rtx")
    graphs = _graphs(spec, executor, target.runtime(runtime).lowering, stage, work)
    final = graphs.plugin or graphs.native
    libraries = plugin_libraries(final.plugins, target, work / PLUGIN_FOLDER)

    def run_engine_stage() -> EngineArtifact:
        made = build_engine(
            work / final.file.name,
            runtime=runtime,
            target=target,
            out=work / ENGINE_NAME,
            plugin_libraries=libraries,
        )
        file = FileDigest(ENGINE_NAME, made.sha256, made.size_bytes)
        return EngineArtifact(
            file, made.runtime, made.runtime_version, made.sm, library_digests(libraries)
        )

    stage(
        "engine",
        EngineArtifact,
        {
            "source": final.file.sha256,
            "target": target_digest(target),
            "runtime": runtime,
            "version": version(distribution(runtime)),
        },
        run_engine_stage,
        lambda e: (e.file,),
    )
    with open_engine(work / ENGINE_NAME, runtime, libraries) as run:
        yield _in_full_batches(run, spec.batch)
