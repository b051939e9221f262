# SPDX-License-Identifier: Apache-2.0
"""The stages that make graphs, with what each depends on: export, precision, lower.

A build and an evaluation run the same ones, each through its own way of skipping stages, so that
what is evaluated is what would be built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar

from stormrt.errors import EnvironmentMissingError
from stormrt.pipeline.artifacts import (
    ExportedGraph,
    FileDigest,
    LoweredGraphs,
    ModelSpec,
    QuantizedGraph,
)
from stormrt.pipeline.probe import installed_version
from stormrt.targets import Lowering, Precision

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


def make_graphs(
    stage: RunStage, spec: ModelSpec, precision: Precision, lowering: Lowering, work: Path
) -> LoweredGraphs | None:
    """Export a model, set its precision, and lower it.

    Args:
        stage: Runs or skips each stage.
        spec: The model.
        precision: Of the graph.
        lowering: ``plugin`` makes the plugin graph beside the native one.
        work: Folder that the stages write into.

    Returns:
        The graphs; None where the last stage was not asked for.

    Raises:
        InputError: A bad checkpoint, or a folder that cannot be written.
        EnvironmentMissingError: A package is missing.
    """

    def run_export() -> ExportedGraph:
        with workstation_packages():
            from stormrt.pipeline.export import export
        return export(spec, work / "exported.onnx")

    exported = stage(
        "export",
        ExportedGraph,
        {**model_facts(spec), "onnx": version("onnx"), "onnxscript": version("onnxscript")},
        run_export,
        lambda e: (e.file,),
    )

    def run_precision() -> QuantizedGraph:
        with workstation_packages():
            from stormrt.pipeline.precision import set_precision
        return set_precision(work / "exported.onnx", precision, work / "quantized.onnx")

    quantized = stage(
        "precision",
        QuantizedGraph,
        {
            "source": exported and exported.file.sha256,
            "precision": precision,
            "onnxruntime": version("onnxruntime"),
        },
        run_precision,
        lambda q: (q.file,),
    )

    def run_lower() -> LoweredGraphs:
        with workstation_packages():
            from stormrt.pipeline.lower import lower
        return lower(
            work / "quantized.onnx",
            work / "native.onnx",
            work / "plugin.onnx" if lowering == "plugin" else None,
        )

    return stage(
        "lower",
        LoweredGraphs,
        {
            "source": quantized and quantized.file.sha256,
            "lowering": lowering,
            "onnx": version("onnx"),
        },
        run_lower,
        lambda g: tuple(graph.file for graph in (g.native, g.plugin) if graph is not None),
    )
