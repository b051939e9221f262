# SPDX-License-Identifier: Apache-2.0
"""The JSON files of an output folder: ``manifest.json`` and ``report.json``.

Neither holds a time, nor a path of the building machine but the checkpoint's as it was given: the
same inputs give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import (
    EngineArtifact,
    FileDigest,
    ModelSpec,
    PluginUse,
)
from stormrt.pipeline.metrics import Metrics
from stormrt.targets import Lowering, Precision

MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
ENGINE_NAME = "engine.plan"
GOLDEN_NAME = "golden.npz"
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
            return cls.model_validate_json(path.read_bytes())
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


class Manifest(Document):
    """What an output folder holds, and what it was made from."""

    stormrt_version: str
    model: ModelSpec
    target: str
    recipe: dict[str, JsonValue]
    """The target's recipe, resolved, so that the folder can be built from on another machine."""
    precision: Precision
    runtime: str
    lowering: Lowering
    """Lowering of ``model.onnx``."""
    plugins: tuple[PluginUse, ...]
    """Custom operators in ``model.onnx``: what the runtime must have plugins for."""
    engine: EngineArtifact | None
    """None: the engine is built on the target (``stormrt build FOLDER``)."""
    files: tuple[FileDigest, ...]
    tools: tuple[ToolVersion, ...]


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
