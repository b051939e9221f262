# SPDX-License-Identifier: Apache-2.0
"""Calibration tables for tests: the largest value seen, and means, of a few random images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy

import numpy as np
import onnx
from numpy.typing import NDArray

from stormrt.calibration.table import CalibrationTable, TensorRange
from stormrt.pipeline.comparison import open_session
from stormrt.pipeline.quantize.policy import QuantizationPolicy, calibrated_tensors, quantised_nodes
from stormrt.pipeline.quantize.smooth import fold_smoothing, smoothing_scales
from tests.pipeline.support import model_spec

ANY_NODE = QuantizationPolicy(rules=(), residuals=True)
"""What a table is made for: every tensor that a policy can ask for."""


def values_of(
    model: onnx.ModelProto, names: Iterable[str], images: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Values of a graph that onnxruntime can run."""
    names = list(dict.fromkeys(names))
    wanted = [name for name in names if name != "images"]
    watched = deepcopy(model)
    types = {value.name: value for value in watched.graph.value_info}
    watched.graph.output.extend(types[name] for name in wanted)
    made = open_session(watched.SerializeToString(), "test").run(wanted, {"images": images})
    found = dict(zip(wanted, made, strict=True))
    return {name: images if name == "images" else found[name] for name in names}


def channel_largest(
    model: onnx.ModelProto, names: Iterable[str], images: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """[C] of each [B, C, ...]."""
    found = values_of(model, names, images)
    return {
        n: np.abs(np.moveaxis(v, 1, 0)).reshape(v.shape[1], -1).max(1) for n, v in found.items()
    }


def ranges_of(model: onnx.ModelProto, images: NDArray[np.float32]) -> dict[str, TensorRange]:
    """Of every tensor that a policy can ask for."""
    ranges = {}
    for name, value in values_of(model, calibrated_tensors(model, ANY_NODE), images).items():
        largest = float(np.abs(value).max())
        mean = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1).mean(1, dtype=np.float64)
        ranges[name] = TensorRange(amax=largest, largest=largest, mean=tuple(mean.tolist()))
    return ranges


def table_of(
    ranges: Mapping[str, TensorRange],
    smoothing: Mapping[str, NDArray[np.float32]] | None = None,
    largest: Mapping[str, float] | None = None,
) -> CalibrationTable:
    """A table of these numbers; what it says of its origin means nothing."""
    return CalibrationTable(
        graph_sha256="0" * 64,
        model=model_spec(),
        plan="dense",
        observer="min-max",
        smoothing={n: tuple(s.tolist()) for n, s in (smoothing or {}).items()},
        tensors=dict(ranges),
        largest=dict(largest or {}),
        images=(),
        skipped=(),
        tools=(),
    )


def calibrated(
    model: onnx.ModelProto, images: NDArray[np.float32], *, smooth: bool = True
) -> CalibrationTable:
    """A table of a small exported graph."""
    scales: dict[str, NDArray[np.float32]] = {}
    observed = deepcopy(model)
    if smooth:
        nodes = quantised_nodes(model)
        seen = channel_largest(model, (node.activation for node in nodes), images)
        scales = smoothing_scales(model, nodes, seen)
        fold_smoothing(observed, scales)
    return table_of(ranges_of(observed, images), scales)
