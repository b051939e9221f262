# SPDX-License-Identifier: Apache-2.0
"""The JSON files of an output folder: ``manifest.json`` and ``report.json``.

Neither holds a time, nor a path of the building machine but the checkpoint's as it was given: the
same inputs give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    JsonValue,
    ValidationError,
    field_validator,
)

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import (
    EngineArtifact,
    FileDigest,
    ModelSpec,
    PluginUse,
)
from stormrt.pipeline.device.names import ENGINE_NAME as ENGINE_NAME
from stormrt.pipeline.device.names import FP16_ENGINE_NAME as FP16_ENGINE_NAME
from stormrt.pipeline.device.names import FP16_MODEL_NAME as FP16_MODEL_NAME
from stormrt.pipeline.device.names import GOLDEN_NAME as GOLDEN_NAME
from stormrt.pipeline.device.names import MANIFEST_NAME as MANIFEST_NAME
from stormrt.pipeline.device.names import MODEL_NAME as MODEL_NAME
from stormrt.pipeline.metrics import Metrics
from stormrt.reading import read_small
from stormrt.targets import Lowering, Precision, RuntimeName

REFUSED_ENGINE_NAME = "engine.refused.plan"
"""An INT8 engine that the gate refused: only what may be used is called ``engine.plan``."""
TABLE_NAME = "calibration.json"
REPORT_JSON_NAME = "report.json"
REPORT_MD_NAME = "report.md"

_Model = TypeVar("_Model", bound="Document")


class Document(BaseModel):
    """A JSON file that refuses unknown keys."""

    # A distance may be infinite, for which JSON has no number.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1

    @classmethod
    def read(cls: type[_Model], path: Path) -> _Model:
        """Read and check a file.

        Raises:
            InputError: The file is missing, damaged, of another schema, or has unknown keys.
        """
        try:
            return cls.model_validate_json(read_small(path))
        except OSError as error:
            raise InputError(
                f"{path.name} could not be read",
                where=str(path),
                got=error.strerror or str(error),
                fix="point at an output folder of `stormrt build`",
            ) from error
        except ValidationError as error:
            problems = "\n            ".join(
                f"{'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']}"
                for e in error.errors(include_url=False)[:5]
            )
            raise InputError(
                f"{path.name} is damaged or of another version",
                where=str(path),
                got=problems,
                fix="build the folder again",
            ) from error

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(indent=2) + "\n"

    def to_json_value(self) -> JsonValue:
        """What a program reads from the file."""
        value: JsonValue = json.loads(self.to_json())
        return value


class ToolVersion(BaseModel):
    """A package that had a part in the result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str


def _in_folder(file: FileDigest) -> FileDigest:
    """A file whose name stays in the folder: names come from whoever made it."""
    path = PurePosixPath(file.name)
    if (
        path.is_absolute()
        or not path.parts
        or ".." in path.parts
        or not file.name.isprintable()
        or any(len(part.encode()) > _LONGEST_NAME for part in path.parts)
    ):
        raise ValueError(f"{file.name[:80]!r} is no name of a file in the folder")
    return file


_LONGEST_NAME = 255
"""Bytes, in every file system that matters."""

FolderFile = Annotated[FileDigest, AfterValidator(_in_folder)]
"""A file that lies in the folder, or below it."""


class Fallback(BaseModel):
    """The FP16 build beside an INT8 one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: FolderFile
    engine: EngineArtifact | None
    """None: built on the target."""

    @field_validator("engine")
    @classmethod
    def _engine_in_folder(cls, engine: EngineArtifact | None) -> EngineArtifact | None:
        return _engine_in_folder(engine)


def _engine_in_folder(engine: EngineArtifact | None) -> EngineArtifact | None:
    if engine is not None:
        _in_folder(engine.file)
    return engine


class Manifest(Document):
    """What an output folder holds, and what it was made from."""

    stormrt_version: str
    model: ModelSpec
    target: str
    recipe: dict[str, JsonValue]
    """The target's recipe, resolved, so that the folder can be built from on another machine."""
    precision: Precision
    runtime: RuntimeName
    lowering: Lowering
    """Lowering of ``model.onnx``."""
    plugins: tuple[PluginUse, ...]
    """Custom operators in ``model.onnx``: what the runtime must have plugins for."""
    engine: EngineArtifact | None
    """None: it is built on the target (``stormrt build FOLDER``), or the gate refused it."""
    fp16: Fallback | None = None
    """Beside INT8."""
    refused: str | None = None
    """Why the gate refused the INT8 build; None: it did not, or there was no gate."""
    files: tuple[FolderFile, ...]
    tools: tuple[ToolVersion, ...]

    @field_validator("engine")
    @classmethod
    def _engine_in_folder(cls, engine: EngineArtifact | None) -> EngineArtifact | None:
        return _engine_in_folder(engine)


class ValidationRow(BaseModel):
    """One runtime against FP32 PyTorch."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    runtime: str
    graph: str
    """What was run."""
    status: Literal["passed", "failed", "not run"]
    reason: str
    """Why it failed or was not run; empty when it passed."""
    metrics: Metrics | None
    """Distance from PyTorch, which follows this runtime's choice of lines where they differ."""
    end_to_end: Metrics | None
    """Distance from PyTorch left to its own choice of lines; equal to ``metrics`` where the choices
    are equal, and for dense models."""
    selection_agreement: float | None
    """Share of the kept lines that are also PyTorch's; None where the graph chooses none."""


class Tolerances(BaseModel):
    """What the recipe allows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rel_l2: float
    cosine: float
    argmax_agreement: float
    selection_agreement: float


class GateRow(BaseModel):
    """One precision of a build with INT8."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    precision: Precision
    onnx_bytes: int
    engine_bytes: int | None
    """None: no engine was built here."""
    metrics: Metrics
    """Distance of the graph in onnxruntime from FP32 PyTorch, which follows its choice of lines."""
    top1: float | None
    """Share of the labelled images that are classified rightly; None: none were given."""
    latency_ms: float | None
    """Of the engine; None: not run."""


class TensorError(BaseModel):
    """What rounding does to one tensor that carries Q/DQ, by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    layer: str
    """The node that reads the tensor, or whose weight it is."""
    tensor: str
    rel_l2: float
    """|dequantised - before| / |before|, on the golden images."""


class GateReport(BaseModel):
    """INT8 beside FP16, and whether it may be used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    passed: bool
    reasons: tuple[str, ...]
    """Why not."""
    rows: tuple[GateRow, ...]
    """INT8, then FP16."""
    labelled: str | None
    """The data that top-1 is of."""
    images: int
    """How many of them."""
    worst: tuple[TensorError, ...]
    """Tensors that rounding changes most, the worst first."""
    notes: tuple[str, ...] = ()
    """What else is known of INT8 on this runtime and GPU."""


class ValidationReport(Document):
    """``report.json``: every runtime against FP32 PyTorch of the same reduced model."""

    passed: bool
    """No row failed, and at least one passed."""
    summary: str
    """The verdict in one sentence."""
    model: ModelSpec
    storm: str
    """The plan, in words."""
    weights: str
    """Where the weights are from, in words."""
    target: str
    precision: Precision
    tolerances: Tolerances
    rows: tuple[ValidationRow, ...]
    first_diverging_layer: str | None
    """The first layer whose output leaves the tolerance, where a row failed."""
    gate: GateReport | None = None
    """Of INT8."""
    sources: tuple[str, ...]
    """Photographs."""
    tools: tuple[ToolVersion, ...]


class SkippedImage(BaseModel):
    """An image that could not be read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    reason: str


class Evaluation(Document):
    """``stormrt evaluate --json``: how often a model names the right class."""

    top1: float
    """Share of the images whose largest logit is their class's, 0 to 1."""
    images: int
    """Images that were read and classified."""
    correct: int
    classes: tuple[str, ...]
    """Names of the model's outputs."""
    confusion: tuple[tuple[int, ...], ...]
    """[classes, classes] counts: a row for each true class, a column for each predicted one."""
    skipped: tuple[SkippedImage, ...]
    data: str
    """The folder, or the npz and its split."""
    model: ModelSpec
    plan: str
    """STORM's plan, in words."""
    weights: str
    """Where the weights are from, in words."""
    precision: Precision
    runtime: str
    seconds: float
    """Reading and classifying the images, without making the model."""
    versions: tuple[ToolVersion, ...]


class ClassProbability(BaseModel):
    """One output of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    index: int
    """Its place among the outputs."""
    probability: float
    """Of softmax over all outputs."""


class Classification(Document):
    """``stormrt classify --json``: what a model sees in a photograph."""

    photograph: str
    classes: tuple[ClassProbability, ...]
    """The most probable ones, the first first."""
    model: ModelSpec
    plan: str
    """STORM's plan, in words."""
    weights: str
    """Where the weights are from, in words."""
    precision: Precision
    runtime: str
    versions: tuple[ToolVersion, ...]


class LayerSensitivity(BaseModel):
    """What quantising one layer, and nothing else, does to the model's output."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    layer: str
    """The node's name."""
    kind: Literal["linear", "depthwise", "residual"]
    """``linear``: the default policy quantises it. It leaves the others in float."""
    rel_l2: float
    """Relative L2 of the logits against the FP32 graph's."""
    argmax_agreement: float
    """Share of the images with FP32's class."""
    top1: float | None
    """Of the labelled images, 0 to 1; None: none were given."""


class MixedPrecisionTrial(BaseModel):
    """The whole INT8 graph with some layers in float."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    kept: int
    """How many of the worst layers stay in float."""
    rel_l2: float
    """Of the logits against the FP32 graph's; what is float is FP16."""
    argmax_agreement: float
    top1: float | None
    """Of the labelled images; None: none were given."""
    within: bool
    """Whether the budget holds."""


class MixedPrecision(BaseModel):
    """The fewest of the worst layers in float with which a budget holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    most_error: float | None
    """Budget: relative L2 of the logits."""
    most_top1_loss: float | None
    """Budget: what top-1 may lose against FP32's, 0 to 1."""
    met: bool
    """False: it does not hold with every layer in float either, as those are FP16."""
    layers: tuple[str, ...]
    """What stays in float, the worst first; empty where the budget is not met."""
    keep_float: tuple[str, ...]
    """The same as regular expressions for a recipe's ``[quantization]``."""
    trials: tuple[MixedPrecisionTrial, ...]
    """In the order they were made."""
    top1: float | None
    """FP32's, of the labelled images; None: none were given."""
    labelled_images: int
    """How many of them trials are judged on."""


class SensitivityReport(Document):
    """``stormrt calibrate --sensitivity``: layers by what quantising each alone does."""

    graph_sha256: str
    """Of the exported graph."""
    table_sha256: str
    """Of the calibration table's file."""
    model: ModelSpec
    plan: str
    """STORM's plan, in words."""
    images: int
    """Calibration images that errors are of."""
    labelled: str | None
    """The data that top-1 is of."""
    labelled_images: int
    """How many of them each layer is judged on."""
    top1: float | None
    """FP32's, of those."""
    layers: tuple[LayerSensitivity, ...]
    """The worst first."""
    mixed: MixedPrecision | None
    """None: no budget was given."""
    tools: tuple[ToolVersion, ...]


class SensitivityProgress(Document):
    """What a ranking has measured so far, so that a killed one goes on."""

    key: str
    """Stands for all that the numbers depend on."""
    layers: dict[str, LayerSensitivity] = {}
    trials: dict[str, MixedPrecisionTrial] = {}
    """By the layers that stay in float, hashed."""
    top1: dict[str, float] = {}
    """FP32's, by the number of labelled images."""
