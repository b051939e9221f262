# SPDX-License-Identifier: Apache-2.0
"""``device_report.json``: what was built on a device, how far it is from PyTorch, how fast it is.

The classes below are the file's one definition. They need no pydantic, so that a board can write
the file without it; ``device.reading`` checks it by the same classes with pydantic.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

from stormrt.pipeline.device.records import FileDigest
from stormrt.pipeline.metrics import Metrics

Status = Literal["passed", "failed", "not run"]
Number = float | Literal["unknown"]
"""A reading, or that the machine does not tell it."""

SCHEMA_VERSION = 1
KIND = "device report"

# pydantic's name for a dataclass's settings: what the classes do not know is an error.
_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Where the engine was built; ``unknown`` where the machine does not tell."""

    __pydantic_config__ = _STRICT

    board: str
    """A Jetson's model; elsewhere the CPU's instruction set."""
    gpu: str
    """The driver's name for it, or why there is none."""
    sm: int | None
    """Its compute capability times ten; None without a GPU."""
    system: str
    python: str
    jetpack: str
    l4t: str
    """Release of Jetson Linux."""
    cuda: str
    """The newest CUDA that the driver supports."""
    driver: str


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a latency depends on beside the engine."""

    __pydantic_config__ = _STRICT

    power_mode: str
    """nvpmodel's, such as ``MAXN``; of a card its power limit."""
    gpu_clock_mhz: Number
    gpu_clock_most_mhz: Number
    """The highest that the machine allows now."""
    gpu_clock_locked: bool | Literal["unknown"]
    """Whether the clock cannot fall below that, as after ``jetson_clocks``."""
    memory_clock_mhz: Number
    cpu_clock_mhz: Number
    """Of the first CPU."""
    temperature_c: Number
    """The GPU's."""
    power_w: Number
    """Of the whole module, or of the card."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of a call, over all of them."""

    __pydantic_config__ = _STRICT

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    least_ms: float
    most_ms: float


@dataclass(frozen=True, slots=True)
class Validation:
    """The engine against FP32 PyTorch on the golden images."""

    __pydantic_config__ = _STRICT

    status: Status
    reason: str
    """Why it failed or was not run; empty when it passed."""
    metrics: Metrics | None
    """Distance from PyTorch left to its own choice of lines."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How fast the engine is here."""

    __pydantic_config__ = _STRICT

    status: Literal["done", "not run"]
    reason: str
    """Why it was not run, or ran without a graph; else empty."""
    batch: int
    """Images a call."""
    cuda_graph: bool
    warm_up: int
    """Calls before those that count."""
    calls: int
    engine: Latency | None
    """The engine alone by the GPU's clock, call after call, without copies."""
    call: Latency | None
    """From images in host memory to logits in host memory, by the CPU's clock."""
    before: Conditions | None
    after: Conditions | None


@dataclass(frozen=True, slots=True)
class EngineResult:
    """One engine of a bundle."""

    __pydantic_config__ = _STRICT

    file: FileDigest
    onnx_sha256: str
    precision: str
    runtime: str
    runtime_version: str
    sm: int
    """That it is for."""
    build_s: float
    workspace_mib: int
    """Most scratch memory that a layer was allowed."""
    timing_cache: Literal["none", "new", "reused"]
    plugin_libraries: tuple[FileDigest, ...]
    warnings: tuple[str, ...]
    validation: Validation
    benchmark: Benchmark


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model, as the manifest has it."""

    __pydantic_config__ = _STRICT

    name: str
    height: int
    width: int
    batch: int
    dynamic_batch: bool
    reductions: int
    """Places at which STORM cuts tokens."""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """The file."""

    __pydantic_config__ = _STRICT

    kind: Literal["device report"]
    schema_version: Literal[1]
    made_by: str
    """``stormrt build`` or ``build_engine.py``, and stormrt's version."""
    target: str
    model: ModelFacts
    golden_sha256: str
    """Of the golden data: equal ones are the same model and the same images."""
    machine: MachineFacts
    recipe_workspace_mib: int
    free_memory_mib: Number
    """When the build began: of GPU and host the less."""
    engines: tuple[EngineResult, ...]
    """``engine.plan``, and beside INT8 the FP16 one."""

    @property
    def passed(self) -> bool:
        """Nothing failed. What could not run has not failed."""
        return all(engine.validation.status != "failed" for engine in self.engines)


def to_json(report: DeviceReport) -> str:
    """The file's text. Distances may be infinite, for which JSON has no number: they are text."""
    return json.dumps(_plain(asdict(report)), indent=2) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value
