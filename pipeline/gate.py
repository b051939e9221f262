# SPDX-License-Identifier: Apache-2.0
"""INT8 beside FP16: how large, how far from PyTorch, how often right; and whether it may be used.

What each Q/DQ pair does to its own tensor is measured too, so that a bad scale is named by its
layer: an error at the outputs tells only that there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from stormrt.pipeline.artifacts import INPUT_NAME, EngineArtifact, LoweredGraph, ModelSpec
from stormrt.pipeline.comparison import batches, open_session
from stormrt.pipeline.evaluation import top1_of
from stormrt.pipeline.metrics import Metrics
from stormrt.pipeline.onnx_file import load_onnx
from stormrt.pipeline.predictors import onnxruntime_predictor
from stormrt.pipeline.schema import GateReport, GateRow, TensorError
from stormrt.targets import Precision, Quantization

MOST_LABELLED = 2000
"""Labelled images, spread evenly over all, that top-1 is of: 0.5 points of them are 10 images."""

TURING_NOTE = (
    "TensorRT-RTX computes no layer in 8 bits on SM 7.5: its INT8 engine only has more kernels "
    "than FP16's (docs/int8.md). For INT8 on this GPU build with full TensorRT on the board"
)

_SHOWN = 8
_IMAGES = 4
"""Golden images that local errors are measured on."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One precision of a build."""

    precision: Precision
    graph: LoweredGraph
    """What the runtime takes."""
    native: Path
    """The native graph's file."""
    metrics: Metrics
    """Of the native graph in onnxruntime."""
    engine: EngineArtifact | None
    """None where none was built."""

    def row(self, top1: float | None) -> GateRow:
        """The candidate in a report."""
        return GateRow(
            precision=self.precision,
            onnx_bytes=self.graph.file.size_bytes,
            engine_bytes=None if self.engine is None else self.engine.file.size_bytes,
            metrics=self.metrics,
            top1=top1,
            latency_ms=None,
        )


def run_gate(
    int8: Candidate,
    fp16: Candidate,
    spec: ModelSpec,
    rules: Quantization,
    failures: tuple[str, ...],
    errors: tuple[TensorError, ...],
    labelled: Path | None,
    notes: tuple[str, ...] = (),
) -> GateReport:
    """Decide whether INT8 may be used.

    Args:
        int8: The candidate.
        fp16: What it is compared with.
        spec: The model.
        rules: Of the recipe.
        failures: What is over the recipe's tolerances already.
        errors: From ``local_errors``.
        labelled: Labelled images (a folder or an npz); None: top-1 is not looked at.
        notes: What else is known.

    Raises:
        InputError: The labelled images are bad, or of other classes.
    """
    reasons, images = list(failures), 0
    tops: list[float | None] = [None, None]
    reasons += [
        f"rounding changes {e.tensor} by {e.rel_l2:.0%} at {e.layer}: its scale is bad"
        for e in errors
        if e.rel_l2 > rules.most_tensor_error
    ]
    if labelled is not None:
        found = [
            top1_of(onnxruntime_predictor(c.native, spec), spec, labelled, MOST_LABELLED)
            for c in (int8, fp16)
        ]
        tops[:], images = [top1 for top1, _ in found], found[0][1]
        lost = found[1][0] - found[0][0]
        if lost > rules.most_top1_loss:
            reasons.append(
                f"top-1 is {100 * lost:.2f} points below FP16's on {images} images, more than "
                f"{100 * rules.most_top1_loss:g}"
            )
    return GateReport(
        passed=not reasons,
        reasons=tuple(reasons),
        rows=(int8.row(tops[0]), fp16.row(tops[1])),
        labelled=None if labelled is None else str(labelled),
        images=images,
        worst=errors[:_SHOWN],
        notes=notes,
    )


def local_errors(
    int8: Path,
    fp16: Path,
    smoothing: Mapping[str, tuple[float, ...]],
    images: NDArray[np.float32],
    batch: int,
) -> tuple[TensorError, ...]:
    """What rounding does to each activation and weight that carries Q/DQ, by itself.

    Args:
        int8: The native INT8 graph.
        fp16: The native FP16 graph of the same model, whose weights are not rounded.
        smoothing: From the calibration table: weights that read a smoothed tensor are multiplied.
        images: [n, 3, H, W], of which a few are looked at.
        batch: The graphs' batch.

    Returns:
        All of them, the worst first.

    Raises:
        InputError: A damaged file, or a graph that onnxruntime refuses.
    """
    model, plain = load_onnx(int8), load_onnx(fp16)
    found = [*_weight_errors(model, plain, smoothing), *_activation_errors(model, images, batch)]
    return tuple(sorted(found, key=lambda e: (-e.rel_l2, e.layer, e.tensor)))


def _pairs(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, str]]:
    """Each DequantizeLinear, a node that reads it, and the input that it reads it by."""
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, place))
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        for reader, place in readers.get(node.output[0], [])[:1]:
            yield node, reader, "weight" if place == 1 else "activation"


def _activation_errors(
    model: onnx.ModelProto, images: NDArray[np.float32], batch: int
) -> list[TensorError]:
    made = {name: node for node in model.graph.node for name in node.output}
    pairs = [
        (made[node.input[0]].input[0], node.output[0], reader.name)
        for node, reader, _ in _pairs(model)
        if node.input[0] in made and made[node.input[0]].op_type == "QuantizeLinear"
    ]
    outputs = {value.name for value in model.graph.output}
    wanted = dict.fromkeys(n for pair in pairs for n in pair[:2] if n not in outputs)
    inputs = {value.name for value in model.graph.input}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in inputs)
    session = open_session(copy.SerializeToString(), "the INT8 graph")
    names = [value.name for value in session.get_outputs()]
    squares = {after: [0.0, 0.0] for _, after, _ in pairs}
    for part, count in batches(images[:_IMAGES], batch):
        values = dict(zip(names, session.run(names, {INPUT_NAME: part}), strict=True))
        values[INPUT_NAME] = part
        for before, after, _ in pairs:
            x = np.asarray(values[before])[:count].astype(np.float64)
            sums = squares[after]
            sums[0] += float(np.square(np.asarray(values[after])[:count] - x).sum())
            sums[1] += float(np.square(x).sum())
    return [
        TensorError(layer=layer, tensor=before, rel_l2=_relative(*squares[after]))
        for before, after, layer in pairs
    ]


def _weight_errors(
    model: onnx.ModelProto, plain: onnx.ModelProto, smoothing: Mapping[str, tuple[float, ...]]
) -> list[TensorError]:
    constants = {i.name: i for i in model.graph.initializer}
    originals = {i.name: i for i in plain.graph.initializer}
    twins = {node.name: node for node in plain.graph.node}
    found = []
    for node, reader, role in _pairs(model):
        twin = twins.get(reader.name)
        if role != "weight" or node.input[0] not in constants or twin is None:
            continue
        weight = originals.get(twin.input[1])
        if weight is None:
            continue
        before = numpy_helper.to_array(weight).astype(np.float64)
        smooth = smoothing.get(twin.input[0])
        if smooth is not None and reader.op_type == "Conv":
            before = before * np.reshape(smooth, (1, -1, *[1] * (before.ndim - 2)))
        rounded = numpy_helper.to_array(constants[node.input[0]]).astype(np.float64)
        scale = numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if a == axis else 1 for a in range(rounded.ndim)] if scale.ndim else []
        after = rounded * scale.reshape(shape)
        error = _relative(float(np.square(after - before).sum()), float(np.square(before).sum()))
        found.append(TensorError(layer=reader.name, tensor=twin.input[1], rel_l2=error))
    return found


def _relative(error: float, size: float) -> float:
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return float(f"{(error / size) ** 0.5:.6g}")
