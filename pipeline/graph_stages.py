# SPDX-License-Identifier: Apache-2.0
"""The stages that make graphs, with what each depends on: export, calibrate, precision, lower.

A build and an evaluation run the same ones, each through its own way of skipping stages, so that
what is evaluated is what would be built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline.artifacts import (
    CalibrationFile,
    ExportedGraph,
    FileDigest,
    LoweredGraphs,
    ModelSpec,
    QuantizedGraph,
)
from stormrt.pipeline.probe import installed_version
from stormrt.targets import Lowering, Precision

if TYPE_CHECKING:
    from stormrt.calibration.images import ImageEvent

_T = TypeVar("_T")


class RunStage(Protocol):
    """Runs a stage, or skips it where what it depends on has not changed."""

    def __call__(
        self,
        name: str,
        kind: type[_T],
        depends_on: dict[str, object],
        compute: Callable[[], _T],
        files_of: Callable[[_T], tuple[FileDigest, ...]],
    ) -> _T | None:
        """The stage's artefact; None where it was not asked for. Arguments: ``StageCache.run``."""


@contextmanager
def workstation_packages() -> Iterator[None]:
    """Turn a missing package of the workstation phase into a message with its remedy.

    Raises:
        EnvironmentMissingError: A package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("stormrt"):
            raise
        raise EnvironmentMissingError(
            f"the package {error.name!r} is not installed",
            where="workstation phase",
            fix='pip install "stormrt[workstation]"',
        ) from error


def version(distribution: str) -> str:
    """A package's version, for what a stage depends on."""
    return installed_version(distribution) or "absent"


def model_facts(spec: ModelSpec) -> dict[str, object]:
    """What a stage depends on that builds the model. Weights count by bytes, not by their path."""
    return {**asdict(spec), "checkpoint": None, "torch": version("torch")}


@dataclass(frozen=True, slots=True)
class Int8Options:
    """What INT8 is made from, and where FP16's range ends."""

    calibration: Path | None = None
    """A calibration table (.json), or images to calibrate on: a folder or an npz. FP16 may do
    without, and then knows nothing of values that it cannot hold."""
    keep_float: tuple[str, ...] = ()
    """Regular expressions on the names of more nodes that stay in floating point."""


NO_INT8 = Int8Options()


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """Names of a precision's files in the work folder."""

    suffix: str = ""

    @property
    def quantized(self) -> str:
        """In its precision, with functions."""
        return f"quantized{self.suffix}.onnx"

    @property
    def native(self) -> str:
        """Standard operators only."""
        return f"native{self.suffix}.onnx"

    @property
    def plugin(self) -> str:
        """With plugin nodes."""
        return f"plugin{self.suffix}.onnx"


FILES = GraphFiles()
EXPORTED_NAME = "exported.onnx"
TABLE_NAME = "calibration.json"


def check_calibration(precision: Precision, calibration: Path | None) -> None:
    """Refuse INT8 without a calibration, and FP32 with one.

    Raises:
        InputError: Either, or a path that does not exist.
    """
    if precision == "fp32" and calibration is not None:
        raise InputError(
            "a calibration is for INT8 and FP16, and the precision is fp32",
            where="--calibration",
            got=str(calibration),
            fix="leave it out, or ask for --precision int8",
        )
    if calibration is None:
        if precision != "int8":
            return
        raise InputError(
            "INT8 needs a calibration",
            where="--calibration",
            expected="a table that `stormrt calibrate` made, or images: a folder or an npz",
        )
    if not calibration.exists():
        raise InputError("the calibration does not exist", where=str(calibration))


def make_graphs(
    stage: RunStage,
    spec: ModelSpec,
    precision: Precision,
    lowering: Lowering,
    work: Path,
    int8: Int8Options = NO_INT8,
    on_image: ImageEvent = lambda *_: None,
) -> LoweredGraphs | None:
    """Export a model, set its precision, and lower it.

    Args:
        stage: Runs or skips each stage.
        spec: The model.
        precision: Of the graph.
        lowering: ``plugin`` makes the plugin graph beside the native one.
        work: Folder that the stages write into.
        int8: What INT8 is made from; of FP16, where values are that it cannot hold.
        on_image: Told of images that are calibrated on.

    Returns:
        The graphs; None where the last stage was not asked for.

    Raises:
        InputError: A bad checkpoint, a folder that cannot be written; for INT8 a table of something
            else, bad images, or neither.
        EnvironmentMissingError: A package is missing.
    """
    exported = export_stage(stage, spec, work)
    table = None
    if int8.calibration is not None:
        table = calibrate_stage(stage, spec, exported, work, int8, on_image)
    return finish_graphs(stage, exported, precision, lowering, work, table, int8.keep_float)


def export_stage(stage: RunStage, spec: ModelSpec, work: Path) -> ExportedGraph | None:
    """Export a model. Arguments, result and errors: ``make_graphs``."""

    def run_export() -> ExportedGraph:
        with workstation_packages():
            from stormrt.pipeline.export import export
        return export(spec, work / EXPORTED_NAME)

    return stage(
        "export",
        ExportedGraph,
        {**model_facts(spec), "onnx": version("onnx"), "onnxscript": version("onnxscript")},
        run_export,
        lambda e: (e.file,),
    )


def calibrate_stage(
    stage: RunStage,
    spec: ModelSpec,
    exported: ExportedGraph | None,
    work: Path,
    int8: Int8Options,
    on_image: ImageEvent,
) -> CalibrationFile | None:
    """The table: the one that was given, checked, or one that is made. More in ``make_graphs``."""
    assert int8.calibration is not None  # the callers' condition
    with workstation_packages():
        from stormrt.calibration.check import check_table, read_table
        from stormrt.calibration.images import ENOUGH, choose_images
        from stormrt.pipeline.calibrate import RangeOptions, calibrate_graph
        from stormrt.pipeline.evaluation import MOST_UNREADABLE
        from stormrt.pipeline.onnx_file import digest_of
    from stormrt.pipeline.files import publish, write_text

    given = int8.calibration
    made = work / TABLE_NAME
    if given.suffix.lower() == ".json":
        table = read_table(given)
        if exported is not None:
            check_table(table, spec, exported.file.sha256, where=str(given))

        def take_table() -> CalibrationFile:
            publish(given, made)
            return CalibrationFile(digest_of(made), len(table.images))

        facts: dict[str, object] = {"table": digest_of(given).sha256}
        return stage("calibrate", CalibrationFile, facts, take_table, lambda t: (t.file,))
    images = choose_images(
        (given,),
        spec.height,
        spec.width,
        wanted=ENOUGH,
        split=None,
        most_unusable=MOST_UNREADABLE,
        on_image=on_image,
    )

    def make_table() -> CalibrationFile:
        assert exported is not None  # the stage before has run
        observed = calibrate_graph(
            spec,
            work / EXPORTED_NAME,
            exported.file.sha256,
            images,
            RangeOptions(),
            work,
            on_image=on_image,
        )
        write_text(made, observed.to_json())
        return CalibrationFile(digest_of(made), len(observed.images))

    return stage(
        "calibrate",
        CalibrationFile,
        {
            "source": exported and exported.file.sha256,
            "images": [image.sha256 for image in images.images],
            "onnxruntime": version("onnxruntime"),
        },
        make_table,
        lambda t: (t.file,),
    )


def finish_graphs(
    stage: RunStage,
    exported: ExportedGraph | None,
    precision: Precision,
    lowering: Lowering,
    work: Path,
    table: CalibrationFile | None = None,
    keep_float: tuple[str, ...] = (),
    files: GraphFiles = FILES,
) -> LoweredGraphs | None:
    """Set an exported graph's precision and lower it. More in ``make_graphs``."""

    def run_precision() -> QuantizedGraph:
        with workstation_packages():
            from stormrt.pipeline.precision import set_precision
            from stormrt.pipeline.quantize.policy import DEFAULT_POLICY
        observed = None
        if table is not None:
            from stormrt.calibration.check import read_table

            observed = read_table(work / table.file.name)
        return set_precision(
            work / EXPORTED_NAME,
            precision,
            work / files.quantized,
            observed,
            DEFAULT_POLICY.keeping(keep_float),
        )

    quantized = stage(
        f"precision{files.suffix}",
        QuantizedGraph,
        {
            "source": exported and exported.file.sha256,
            "precision": precision,
            "table": table and table.file.sha256,
            "keep_float": keep_float,
            "onnxruntime": version("onnxruntime"),
        },
        run_precision,
        lambda q: (q.file,),
    )

    def run_lower() -> LoweredGraphs:
        with workstation_packages():
            from stormrt.pipeline.lower import lower
        return lower(
            work / files.quantized,
            work / files.native,
            work / files.plugin if lowering == "plugin" else None,
        )

    return stage(
        f"lower{files.suffix}",
        LoweredGraphs,
        {
            "source": quantized and quantized.file.sha256,
            "lowering": lowering,
            "onnx": version("onnx"),
        },
        run_lower,
        lambda g: tuple(graph.file for graph in (g.native, g.plugin) if graph is not None),
    )
