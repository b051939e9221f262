# SPDX-License-Identifier: Apache-2.0
"""The whole chain as one readable function: a checkpoint becomes an engine, or a bundle for one.

Stages write into ``OUT/.stormrt``; only when all of them are done are the results put under their
final names, so that a failure leaves an earlier build's files as they were.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from stormrt.errors import InputError
from stormrt.locking import folder_lock
from stormrt.pipeline.artifacts import (
    EngineArtifact,
    FileDigest,
    GoldenData,
    LoweredGraph,
    LoweredGraphs,
    ModelSpec,
)
from stormrt.pipeline.device.names import WORK_FOLDER as WORK_FOLDER
from stormrt.pipeline.files import require_folder, sha256_file, sweep, write_text
from stormrt.pipeline.graph_stages import (
    NO_INT8,
    GraphFiles,
    Int8Options,
    calibrate_stage,
    check_calibration,
    export_stage,
    finish_graphs,
    model_facts,
    version,
    workstation_packages,
)
from stormrt.pipeline.model_spec import resolve_spec
from stormrt.pipeline.provenance import TOOLS, distribution, fingerprint, target_digest
from stormrt.pipeline.publish import PUBLISHED, publish_results
from stormrt.pipeline.runtimes import RuntimeChoice, choose_runtime
from stormrt.pipeline.schema import (
    ENGINE_NAME,
    FP16_ENGINE_NAME,
    GOLDEN_NAME,
    Manifest,
    ValidationReport,
)
from stormrt.pipeline.stage_cache import StageCache
from stormrt.targets import Precision, RuntimeName, Target, load_target

if TYPE_CHECKING:
    from stormrt.calibration.images import ImageEvent

STAGES = ("golden", "export", "calibrate", "precision", "lower", "engine", "validate")
"""In order. ``golden`` is first: a bad checkpoint or photograph shows before the long stages.
``calibrate`` is INT8's, and FP16's where a calibration is given."""

BESIDE = "-fp16"
"""Ends the names of the stages, and of their files, that make the FP16 build beside an INT8 one."""

DEFAULT_SEED = 0

StageStatus = Literal["run", "skipped", "would run", "would skip", "not asked for"]
StageEvent = Callable[[str, StageStatus, float | None], None]
"""Called with a stage's name, what happens to it, and its seconds once it has run."""
ProgressCallback = Callable[[str, int, int], None]
"""Called with a phase of the engine builder, its steps done, and how many it has."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What the user asked for, not yet checked."""

    model: str
    target: str
    out: Path
    checkpoint: Path | None = None
    """None: weights that come with the package, else random ones."""
    num_classes: int | None = None
    """None: the variant's."""
    precision: str | None = None
    """None: the recipe's default."""
    storm: str = "keep=1"
    height: int | None = None
    """Image height in pixels; None: the variant's, as for the width."""
    width: int | None = None
    batch: int = 1
    dynamic_batch: bool = False
    photographs: Path | None = None
    """File or folder; None: those that come with dependencies."""
    calibration: Path | None = None
    """Of INT8, or of FP16 for values that it cannot hold: a table, or images."""
    labelled: Path | None = None
    """Labelled images that the gate of INT8 takes top-1 of."""
    runtime: RuntimeName | None = None
    seed: int = DEFAULT_SEED
    force: bool = False
    first: str | None = None
    """``--from``: stages before it must have run, this one and later ones run again."""
    last: str | None = None
    """``--to``: stop after it; nothing is published."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """A checked request."""

    spec: ModelSpec
    target: Target
    precision: Precision
    runtime: RuntimeChoice
    photographs: tuple[Path, ...]
    out: Path
    int8: Int8Options = NO_INT8
    labelled: Path | None = None

    @property
    def work(self) -> Path:
        """Where the stages write."""
        return self.out / WORK_FOLDER


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """What a build made."""

    plan: BuildPlan
    stages: tuple[tuple[str, StageStatus], ...]
    manifest: Manifest | None
    """None after ``--to`` or ``--dry-run``."""
    report: ValidationReport | None
    board_command: str | None
    """What to type on the target, where the engine could not be built here."""


def resolve(request: BuildRequest) -> BuildPlan:
    """Check a request, without writing anything and without PyTorch.

    Raises:
        InputError: Anything that is wrong with it.
        EnvironmentMissingError: The packaged photographs are missing.
    """
    target = load_target(request.target)
    precision = request.precision or target.build.default_precision
    if precision not in target.build.precisions:
        raise InputError(
            f"target {target.id} has no precision {precision!r}",
            where="--precision",
            expected=" or ".join(target.build.precisions),
        )
    for stage, option in ((request.first, "--from"), (request.last, "--to")):
        if stage is not None and stage not in STAGES:
            raise InputError("no such stage", where=option, got=stage, expected=", ".join(STAGES))
    spec = resolve_spec(
        request.model,
        checkpoint=request.checkpoint,
        num_classes=request.num_classes,
        storm=request.storm,
        height=request.height,
        width=request.width,
        batch=request.batch,
        dynamic_batch=request.dynamic_batch,
        seed=request.seed,
    )
    check_calibration(precision, request.calibration)
    if request.labelled is not None and precision != "int8":
        raise InputError(
            "labelled images are for the gate of INT8",
            where="--labelled",
            got=f"precision {precision}",
            fix="leave it out; `stormrt evaluate` says how often a model is right",
        )
    if request.labelled is not None and not request.labelled.exists():
        raise InputError("the labelled images do not exist", where=str(request.labelled))
    require_folder(request.out)
    # Imported here: Pillow and NumPy are not needed to refuse a bad request.
    from stormrt.pipeline.photographs import (
        check_photographs,
        find_photographs,
        packaged_photographs,
    )

    if request.photographs is None:
        photographs = packaged_photographs()
    else:
        photographs = find_photographs(request.photographs)
        check_photographs(photographs)
    return BuildPlan(
        spec=spec,
        target=target,
        precision=precision,
        runtime=choose_runtime(target, request.runtime),
        photographs=photographs,
        out=request.out,
        int8=Int8Options(
            request.calibration,
            () if target.quantization is None else target.quantization.keep_float,
        ),
        labelled=request.labelled,
    )


def build(
    request: BuildRequest,
    *,
    on_stage: StageEvent = lambda *_: None,
    on_progress: ProgressCallback | None = None,
    on_image: ImageEvent = lambda *_: None,
) -> BuildOutcome:
    """Run the chain.

    Raises:
        InputError: Bad input, found before or within a stage; published files are as they were.
        EnvironmentMissingError: A package is missing.
    """
    plan = resolve(request)
    if request.dry_run:
        return _run(plan, request, on_stage, on_progress, on_image)
    with folder_lock(plan.work):
        sweep(plan.work, "*")
        sweep(plan.out, *PUBLISHED)
        return _run(plan, request, on_stage, on_progress, on_image)


class _Chain:
    """Runs or skips one stage after the other."""

    def __init__(self, plan: BuildPlan, request: BuildRequest, on_stage: StageEvent) -> None:
        first = STAGES.index(request.first) if request.first else None
        last = STAGES.index(request.last) if request.last else len(STAGES) - 1
        forced = STAGES if request.force else STAGES[first:] if first is not None else ()
        self.cache = StageCache(plan.work, frozenset((*forced, *(s + BESIDE for s in forced))))
        self.before = frozenset(STAGES[:first]) if first is not None else frozenset()
        self.after = frozenset(STAGES[last + 1 :])
        self.dry_run, self.on_stage = request.dry_run, on_stage
        self.statuses: list[tuple[str, StageStatus]] = []

    def stage(
        self,
        name: str,
        kind: type[_T],
        depends_on: dict[str, object],
        compute: Callable[[], _T],
        files_of: Callable[[_T], tuple[FileDigest, ...]],
    ) -> _T | None:
        """The stage's artefact; None where it was not asked for, or in a dry run is to be made."""
        key = self.cache.key(name, depends_on)
        place = name.removesuffix(BESIDE)
        if place in self.after:
            return self._done(name, "not asked for", None)
        if place in self.before and not self.dry_run:
            return self._done(name, "skipped", self.cache.require(name, kind, key))
        found = self.cache.load(name, kind, key)
        if self.dry_run:
            return self._done(name, "would run" if found is None else "would skip", found)
        if found is not None:
            return self._done(name, "skipped", found)
        self.on_stage(name, "run", None)
        made = self.cache.run(name, kind, key, compute, files_of)
        return self._done(name, "run", made)

    def _done(self, name: str, status: StageStatus, artifact: _T | None) -> _T | None:
        self.statuses.append((name, status))
        self.on_stage(name, status, self.cache.seconds.get(name, 0.0))
        return artifact


def _run(
    plan: BuildPlan,
    request: BuildRequest,
    on_stage: StageEvent,
    on_progress: ProgressCallback | None,
    on_image: ImageEvent,
) -> BuildOutcome:
    chain, work, spec = _Chain(plan, request, on_stage), plan.work, plan.spec
    stage, lowering = chain.stage, plan.runtime.recipe.lowering
    photographs = [sha256_file(path) for path in plan.photographs]

    def run_golden() -> GoldenData:
        with workstation_packages():
            from stormrt.pipeline.golden import make_golden
        return make_golden(spec, plan.photographs, work / GOLDEN_NAME)

    golden = stage(
        "golden",
        GoldenData,
        {
            **model_facts(spec),
            "photographs": photographs,
            "batch": None,
            "pillow": version("pillow"),
        },
        run_golden,
        lambda g: (g.file,),
    )
    exported = export_stage(stage, spec, work)
    table, beside = None, None
    if plan.int8.calibration is not None:
        table = calibrate_stage(stage, spec, exported, work, plan.int8, on_image)
    keep = plan.int8.keep_float
    lowered = finish_graphs(stage, exported, plan.precision, lowering, work, table, keep)
    if plan.precision == "int8":
        fp16 = finish_graphs(stage, exported, "fp16", lowering, work, table, (), BESIDE_FILES)
        beside = Built(fp16, _engine(chain, plan, fp16, FP16_ENGINE_NAME, on_progress))
    built = Built(lowered, _engine(chain, plan, lowered, ENGINE_NAME, on_progress))
    if plan.runtime.blocker is not None:
        chain.statuses.append(("engine", "not asked for"))

    def run_validate() -> ValidationReport:
        with workstation_packages():
            from stormrt.pipeline.validate import validate_build
        return validate_build(plan, work, built.engine, built, beside, table)

    report = stage(
        "validate",
        ValidationReport,
        {
            "graph": lowered and lowered.native.file.sha256,
            "engine": built.engine and built.engine.file.sha256,
            "beside": beside and beside.digests(),
            "labelled": plan.labelled and fingerprint(plan.labelled),
            "blocker": plan.runtime.blocker,
            "golden": golden and golden.file.sha256,
            "target": target_digest(plan.target),
            "spec": asdict(spec),  # the report names the checkpoint
            "tools": [version(name) for name in TOOLS],
        },
        run_validate,
        lambda _: (),
    )
    manifest: Manifest | None = None
    if not request.dry_run and request.last is None:
        # Every stage has run or was skipped.
        assert golden is not None
        assert report is not None
        manifest = publish_results(plan, golden, table, built, beside, report)
    return BuildOutcome(
        plan=plan,
        stages=tuple(chain.statuses),
        manifest=manifest,
        report=report,
        board_command=_board_command(plan.out) if plan.runtime.blocker else None,
    )


BESIDE_FILES = GraphFiles(BESIDE)


@dataclass(frozen=True, slots=True)
class Built:
    """One precision of a build: its graphs, and its engine where there is one."""

    graphs: LoweredGraphs | None
    """None where the stage was not asked for, or in a dry run is to be made."""
    engine: EngineArtifact | None

    @property
    def final(self) -> LoweredGraph | None:
        """The graph that the runtime takes."""
        return None if self.graphs is None else self.graphs.plugin or self.graphs.native

    def digests(self) -> tuple[str | None, str | None]:
        """What depends on it depends on these."""
        final = self.final
        return (
            None if final is None else final.file.sha256,
            None if self.engine is None else self.engine.file.sha256,
        )


def layers_name(engine: str) -> str:
    """The file beside an engine in the work folder with the builder's list of its layers."""
    return f"{engine}.layers"


def _engine(
    chain: _Chain,
    plan: BuildPlan,
    graphs: LoweredGraphs | None,
    name: str,
    on_progress: ProgressCallback | None,
) -> EngineArtifact | None:
    """The engine stage of one precision; None where no engine is built here."""
    if plan.runtime.blocker is not None:
        return None
    final, work, spec = Built(graphs, None).final, plan.work, plan.spec

    def run_engine() -> EngineArtifact:
        from stormrt.pipeline.device_build import PLUGIN_FOLDER, library_digests, plugin_libraries
        from stormrt.pipeline.engine import build_engine

        assert final is not None  # the stage before has run
        libraries = plugin_libraries(final.plugins, plan.target, work / PLUGIN_FOLDER)
        result = build_engine(
            work / final.file.name,
            runtime=plan.runtime.recipe.name,
            target=plan.target,
            out=work / name,
            plugin_libraries=libraries,
            progress=on_progress,
            board_command=_board_command(plan.out),
            max_batch=spec.batch if spec.dynamic_batch else None,
        )
        # Before the stage's record: where that is, this is too.
        write_text(work / layers_name(name), "".join(f"{line}\n" for line in result.layers))
        return EngineArtifact(
            FileDigest(name, result.sha256, result.size_bytes),
            result.runtime,
            result.runtime_version,
            result.sm,
            library_digests(libraries),
        )

    return chain.stage(
        "engine" if name == ENGINE_NAME else f"engine{BESIDE}",
        EngineArtifact,
        {
            "source": final and final.file.sha256,
            "target": target_digest(plan.target),
            "runtime": plan.runtime.recipe.name,
            "version": version(distribution(plan.runtime.recipe.name)),
        },
        run_engine,
        lambda e: (e.file,),
    )


def _board_command(out: Path) -> str:
    return f"stormrt build {shlex.quote(out.absolute().name)}/"
