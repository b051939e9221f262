# SPDX-License-Identifier: Apache-2.0
"""The device phase: verify, build, validate, time, report.

Its modules need NumPy and the runtime. ``stormrt build BUNDLE`` and ``build_engine.py`` both call
``run_device_phase``; they differ in how they read arguments and show progress.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stormrt.errors import EnvironmentMissingError, InputError, StormrtError
from stormrt.locking import folder_lock
from stormrt.pipeline import probe
from stormrt.pipeline.device.bundle import Bundle, enter_engines
from stormrt.pipeline.device.memory import Workspace, workspace
from stormrt.pipeline.device.names import (
    DEVICE_REPORT_NAME,
    ENGINE_NAME,
    FP16_ENGINE_NAME,
    FP16_MODEL_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    PLUGIN_FOLDER,
    WORK_FOLDER,
)
from stormrt.pipeline.device.records import EngineArtifact, FileDigest
from stormrt.pipeline.device.report import (
    Benchmark,
    DeviceReport,
    EngineResult,
    MachineFacts,
    Validation,
    to_json,
)
from stormrt.pipeline.device.timing import benchmark_engine, not_timed
from stormrt.pipeline.device.validation import not_validated, validate_engine
from stormrt.pipeline.engine import EngineBuildResult, build_engine, require_gpu
from stormrt.pipeline.engine_progress import ProgressCallback
from stormrt.pipeline.files import sweep, write_text
from stormrt.runtime.engine import Engine
from stormrt.runtime.record import EngineRecord, PluginLibrary

if TYPE_CHECKING:
    from stormrt.runtime.device import Device
    from stormrt.targets import RuntimeName

StageCallback = Callable[[str], None]
"""Called with what begins, in words."""


@dataclass(frozen=True, slots=True)
class PhaseOptions:
    """What whoever runs the phase chooses."""

    made_by: str
    """For the report."""
    command: str
    """What to type to run it again."""
    runtime: str | None = None
    """The bundle's own unless given."""
    on_progress: ProgressCallback | None = None
    on_stage: StageCallback = lambda _text: None
    device: int | Device = 0
    """CUDA's number of the GPU."""


def run_device_phase(bundle: Bundle, options: PhaseOptions) -> DeviceReport:
    """Build a bundle's engines on this machine, and validate and time them where its GPU is here.

    Engines come into the manifest as soon as they are built; the report is the last to be written.

    Args:
        bundle: From ``bundle.read_manifest``.
        options: Runtime and callbacks.

    Returns:
        The report, which is in the folder then.

    Raises:
        InputError: The bundle is damaged, the gate has refused it, the runtime takes another
            lowering or does not build the graph, or another build is at work in the folder.
        EnvironmentMissingError: The runtime, the plugin library or the target's GPU is missing.
        KeyboardInterrupt: The build was cancelled.
    """
    bundle.verify()
    if bundle.refused is not None:
        raise InputError(
            "the gate refused this bundle's INT8 graph, so that no engine is built from it",
            where=str(bundle.folder),
            got=bundle.refused,
            fix="build the bundle again with --precision fp16, or with a better calibration",
        )
    recipe = bundle.board.runtime(options.runtime or bundle.runtime)
    if recipe.lowering != bundle.lowering:
        raise InputError(
            f"the bundle's graph is in its {bundle.lowering} lowering, and {recipe.name} takes "
            f"the {recipe.lowering} lowering",
            where=str(bundle.folder / MODEL_NAME),
            fix=f"build the bundle again with --runtime {recipe.name}",
        )
    if recipe.name == "tensorrt":
        # Before a library is compiled for a GPU that is not here.
        require_gpu(bundle.board, options.command)
    phase = _Phase(bundle, options, cast("RuntimeName", recipe.name))
    with folder_lock(bundle.folder / WORK_FOLDER):
        names = (ENGINE_NAME, FP16_ENGINE_NAME, MANIFEST_NAME, DEVICE_REPORT_NAME)
        sweep(bundle.folder, *names)
        return phase.run()


class _Phase:
    def __init__(self, bundle: Bundle, options: PhaseOptions, runtime: RuntimeName) -> None:
        self._bundle, self._options, self._runtime = bundle, options, runtime
        self._memory: Workspace = workspace(bundle.board, runtime)

    def run(self) -> DeviceReport:
        bundle, say = self._bundle, self._options.on_stage
        wanted = [(MODEL_NAME, ENGINE_NAME, bundle.precision)]
        if bundle.has_fp16:
            wanted.append((FP16_MODEL_NAME, FP16_ENGINE_NAME, "fp16"))
        libraries, digests = self._libraries()
        built = []
        for model, name, _ in wanted:
            say(f"building {name}")
            built.append(self._build(model, name, libraries))
        artifacts = [
            EngineArtifact(
                FileDigest(result.plan.name, result.sha256, result.size_bytes),
                result.runtime,
                result.runtime_version,
                result.sm,
                digests,
            )
            for result in built
        ]
        enter_engines(bundle, self._runtime, artifacts)
        engines = []
        for (model, _, precision), result, artifact in zip(wanted, built, artifacts, strict=True):
            validation, timing = self._try(artifact, precision, libraries)
            engines.append(
                EngineResult(
                    file=artifact.file,
                    onnx_sha256=bundle.digest(model),
                    precision=precision,
                    runtime=artifact.runtime,
                    runtime_version=artifact.runtime_version,
                    sm=artifact.sm,
                    build_s=round(result.build_seconds, 2),
                    workspace_mib=self._memory.limit_mib,
                    timing_cache=result.timing_cache,
                    plugin_libraries=digests,
                    warnings=result.warnings,
                    validation=validation,
                    benchmark=timing,
                )
            )
        report = DeviceReport(
            kind="device report",
            schema_version=1,
            made_by=self._options.made_by,
            target=bundle.board.id,
            model=bundle.model,
            golden_sha256=bundle.digest(GOLDEN_NAME),
            machine=machine_facts(),
            recipe_workspace_mib=self._memory.recipe_mib,
            free_memory_mib=self._memory.free_mib,
            engines=tuple(engines),
        )
        write_text(bundle.folder / DEVICE_REPORT_NAME, to_json(report))
        return report

    def _libraries(self) -> tuple[tuple[Path, ...], tuple[FileDigest, ...]]:
        bundle = self._bundle
        if not bundle.plugins:
            return (), ()
        # The sources of the plugins are not a part of build_engine.py: only these graphs need them.
        from stormrt.pipeline.device.plugins import library_digests, plugin_libraries

        self._options.on_stage("the plugin library")
        folder = bundle.folder / PLUGIN_FOLDER
        libraries = plugin_libraries(bundle.plugins, bundle.board, folder)
        return libraries, library_digests(libraries)

    def _build(self, model: str, name: str, libraries: tuple[Path, ...]) -> EngineBuildResult:
        bundle = self._bundle
        sm = bundle.board.device.sm
        return build_engine(
            bundle.folder / model,
            runtime=self._runtime,
            target=bundle.board,
            out=bundle.folder / name,
            plugin_libraries=libraries,
            progress=self._options.on_progress,
            # One cache for each GPU; the library itself refuses one of another release.
            timing_cache=bundle.folder / WORK_FOLDER / f"timing-sm{sm}.cache"
            if self._runtime == "tensorrt"
            else None,
            workspace_mib=self._memory.limit_mib,
            board_command=self._options.command,
            max_batch=bundle.model.batch if bundle.model.dynamic_batch else None,
        )

    def _try(
        self, artifact: EngineArtifact, precision: str, libraries: tuple[Path, ...]
    ) -> tuple[Validation, Benchmark]:
        """Validate and time an engine, where it can run here."""
        bundle, say = self._bundle, self._options.on_stage
        batch, name = bundle.model.batch, artifact.file.name
        blocker = probe.engine_run_blocker(self._runtime, artifact.sm)
        if blocker is not None:
            return not_validated(blocker), not_timed(blocker, batch)
        record = EngineRecord(
            plan=bundle.folder / name,
            runtime=self._runtime,
            plugins=tuple(PluginLibrary(path, None) for path in libraries),
            rebuild=self._options.command,
            sha256=artifact.file.sha256,
            version=artifact.runtime_version,
            sm=artifact.sm,
            target=bundle.board.id,
            runtime_cache=bundle.folder / WORK_FOLDER / f"runtime-sm{artifact.sm}.cache",
        )
        say(f"validating {name}")
        try:
            # Without a graph, so that a failure here is the engine's and not the recording's.
            with Engine.open(record, device=self._options.device) as engine:
                allowed = bundle.board.tolerance_for(precision, self._runtime)
                validation = validate_engine(engine, bundle.folder / GOLDEN_NAME, allowed)
        except EnvironmentMissingError as error:
            reason = _reason(error)
            return not_validated(reason), not_timed(reason, batch)
        except InputError as error:
            reason = _reason(error)
            return Validation("failed", reason, None), not_timed(reason, batch)
        say(f"timing {name}")
        return validation, self._time(record, batch)

    def _time(self, record: EngineRecord, batch: int) -> Benchmark:
        device = self._options.device
        try:
            with Engine.open(record, cuda_graph=True, device=device) as engine:
                return benchmark_engine(engine, cuda_graph=True)
        except StormrtError as error:
            note = f"without a CUDA graph: {_reason(error)}"
        try:
            with Engine.open(record, device=device) as engine:
                return benchmark_engine(engine, cuda_graph=False, note=note)
        except StormrtError as error:
            return not_timed(_reason(error), batch)


def _reason(error: StormrtError) -> str:
    return f"{error.what}: {error.got}" if error.got else error.what


def machine_facts() -> MachineFacts:
    """This machine, as far as a report names it."""
    driver, board = probe.cuda_driver(), probe.jetson()
    gpu = driver.gpus[0] if driver.gpus else None
    return MachineFacts(
        board=board.model if board else platform.machine(),
        gpu=gpu.name if gpu else driver.reason or "no GPU",
        sm=gpu.sm if gpu else None,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        jetpack=board.jetpack if board else probe.UNKNOWN,
        l4t=board.l4t if board else probe.UNKNOWN,
        cuda=driver.cuda_version or probe.UNKNOWN,
        driver=driver.driver_version or probe.UNKNOWN,
    )


def bundle_command(program: str, folder: Path) -> str:
    """What to type to build a bundle."""
    return f"{program} {shlex.quote(str(folder))}"
