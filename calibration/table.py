# SPDX-License-Identifier: Apache-2.0
"""The calibration table: every scale of an INT8 build, with what it was made from.

JSON, so that two tables can be compared line by line. A table belongs to one exported graph: model,
weights, image size and STORM plan, since each of them changes what the activations are.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stormrt.pipeline.artifacts import ModelSpec
from stormrt.pipeline.schema import Document, ToolVersion

ObserverName = Literal["min-max", "percentile", "entropy", "mse"]
"""How a tensor's range is chosen from its values (``observers``)."""


class CalibrationImage(BaseModel):
    """An image that the ranges were observed on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str
    """Of the encoded file."""


class TensorRange(BaseModel):
    """What was observed of one tensor [B, C, H, W], of the graph after smoothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    amax: float = Field(gt=0)
    """The range that INT8 has to hold, by the observer: the scale is ``amax / 127``."""
    largest: float = Field(ge=0)
    """Largest absolute value seen."""
    mean: tuple[float, ...]
    """[C] mean of each channel, for the correction of biases."""


class CalibrationTable(Document):
    """``calibration.json``."""

    graph_sha256: str
    """Of the exported graph's file (``ExportedGraph``), which quantised graphs are made from."""
    model: ModelSpec
    plan: str
    """STORM's plan, in words."""
    observer: ObserverName
    percentile: float | None = None
    """Share of the values that the range holds, in per cent; of the observer ``percentile``."""
    smoothing: dict[str, tuple[float, ...]]
    """[C] for each smoothed tensor, by its name: its channels are divided by these, and the weights
    that read it multiplied (``quantize.smooth``)."""
    tensors: dict[str, TensorRange]
    """By the tensor's name in the exported graph."""
    largest: dict[str, float] = Field(default_factory=dict)
    """Largest absolute value of each other value of the graph that FP16 would hold, by its name
    (``quantize.overflow``)."""
    images: tuple[CalibrationImage, ...]
    skipped: tuple[str, ...]
    """Images that could not be read."""
    tools: tuple[ToolVersion, ...]
