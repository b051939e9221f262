# SPDX-License-Identifier: Apache-2.0
"""The types that flow between the stages. Frozen; large data by path and digest; units in names.

``ModelSpec -> ExportedGraph -> QuantizedGraph -> LoweredGraph``, ``GoldenData`` and
``EngineArtifact`` -> ``ValidationReport`` -> the files of an output folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from stormrt.pipeline.device.names import INPUT_NAME as INPUT_NAME
from stormrt.pipeline.device.names import OUTPUT_NAME as OUTPUT_NAME
from stormrt.pipeline.device.records import EngineArtifact as EngineArtifact
from stormrt.pipeline.device.records import FileDigest as FileDigest
from stormrt.pipeline.device.records import PluginUse as PluginUse
from stormrt.storm.plan import StormPlan
from stormrt.targets import Lowering, Precision


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, with which weights, cut down how, for which input."""

    name: str
    """A key of ``stormrt.storm.VARIANTS``."""
    num_classes: int
    checkpoint: str | None
    """Path of the weights; None: random weights from ``seed``."""
    checkpoint_sha256: str | None
    seed: int
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""
    batch: int
    """Images a call; with ``dynamic_batch``, the most."""
    dynamic_batch: bool
    plan: StormPlan


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """The graph as PyTorch's exporter gave it: FP32, custom nodes with functions attached."""

    file: FileDigest
    opset: int
    node_count: int
    plugins: tuple[PluginUse, ...]


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """A calibration table's file (``calibration.table``)."""

    file: FileDigest
    images: int


@dataclass(frozen=True, slots=True)
class QuantizedGraph:
    """The graph in its precision, by casts and Q/DQ. Custom nodes still have functions attached."""

    file: FileDigest
    precision: Precision
    node_count: int
    kept_fp32: int
    """Nodes that the precision stage left in FP32 on purpose."""


@dataclass(frozen=True, slots=True)
class LoweredGraph:
    """A graph that a runtime takes: standard ops only, or with plugin nodes."""

    file: FileDigest
    lowering: Lowering
    node_count: int
    plugins: tuple[PluginUse, ...]


@dataclass(frozen=True, slots=True)
class LoweredGraphs:
    """What the lowering stage makes: always the native graph, the plugin graph where wanted."""

    native: LoweredGraph
    plugin: LoweredGraph | None


@dataclass(frozen=True, slots=True)
class GoldenData:
    """Inputs from real photographs and the outputs of FP32 PyTorch for them."""

    file: FileDigest
    images: int
    sources: tuple[str, ...]
    """One name a photograph."""
