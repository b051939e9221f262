# SPDX-License-Identifier: Apache-2.0
"""A lowered graph in onnxruntime against FP32 PyTorch of the same reduced model."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.comparator import Comparator, IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME, ModelSpec
from stormrt.pipeline.device.golden import batches as batches
from stormrt.pipeline.metrics import Metrics, compare, relative_l2
from stormrt.pipeline.model_source import build_model
from stormrt.pipeline.onnx_file import load_onnx
from stormrt.pipeline.rewrite.name_by_module import boundary_values, selection_values
from stormrt.storm.reductions import LineChoice
from stormrt.storm.vmamba import VMamba, forced_selections

PYTORCH = "pytorch"
ONNXRUNTIME = "onnxruntime"


class MetricCompareFunc:
    """Compares one iteration of two runners by our metrics, for Polygraphy's Comparator."""

    def __init__(self) -> None:
        self.outputs: list[NDArray[np.float32]] = []
        self.reference: list[NDArray[np.float32]] = []

    def __call__(
        self, reference: IterationResult, result: IterationResult
    ) -> OrderedDict[str, bool]:
        """Collect an iteration; the verdict is on all of them together."""
        self.reference.append(np.asarray(reference[OUTPUT_NAME]))
        self.outputs.append(np.asarray(result[OUTPUT_NAME]))
        return OrderedDict([(OUTPUT_NAME, True)])

    def metrics(self) -> Metrics:
        """Distance over all iterations."""
        return compare(np.concatenate(self.outputs), np.concatenate(self.reference))


def open_session(model: bytes, where: str) -> onnxruntime.InferenceSession:
    """Open a graph in onnxruntime on the CPU.

    Raises:
        InputError: onnxruntime refuses the graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Idle threads that spin would take the cores from PyTorch, which runs in turns with this.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            model, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own exception classes share no base
        raise InputError(
            "onnxruntime refuses the graph", where=where, got=str(error).splitlines()[0]
        ) from error


@dataclass(frozen=True, slots=True)
class Comparison:
    """Outputs of one runtime against FP32 PyTorch."""

    metrics: Metrics
    """PyTorch following the runtime's choice of lines."""
    end_to_end: Metrics
    """PyTorch left to itself."""
    selection_agreement: float | None
    """Share of the runtime's kept lines that PyTorch keeps too; None where the graph chooses none:
    dense models, and lines that are the same for every image."""


def run_onnxruntime(
    path: Path, spec: ModelSpec, images: NDArray[np.float32], logits: NDArray[np.float32]
) -> Comparison:
    """Run the native graph and compare with PyTorch, through Polygraphy's Comparator.

    Args:
        path: The native graph.
        spec: To build the PyTorch model from, where the graph's choice of lines differs from it.
        images: [n, 3, H, W].
        logits: [n, classes] of FP32 PyTorch.

    Raises:
        InputError: onnxruntime refuses the graph.
    """
    G_LOGGER.module_severity = {"": G_LOGGER.ERROR}
    proto = load_onnx(path)
    selections = selection_values(proto.graph)
    expose(proto, selections)
    session = open_session(proto.SerializeToString(), str(path))
    cut = batches(images, spec.batch)
    results = Comparator.run(
        [OnnxrtRunner(session, name=ONNXRUNTIME)],
        data_loader=[{INPUT_NAME: part} for part, _ in cut],
    )
    iterations = [
        {name: np.asarray(array)[:count] for name, array in iteration.items()}
        for (_, count), iteration in zip(cut, results[0][1], strict=True)
    ]
    outputs = np.concatenate([i[OUTPUT_NAME] for i in iterations])
    end_to_end = compare_images(outputs, logits)
    if not selections:
        return Comparison(end_to_end, end_to_end, None)
    chosen = {name: np.concatenate([i[name] for i in iterations]) for name in selections}
    followed, agreement = _follow(spec, images, chosen)
    return Comparison(compare_images(outputs, followed), end_to_end, agreement)


def compare_images(outputs: NDArray[np.float32], reference: NDArray[np.float32]) -> Metrics:
    """Compare image by image through Polygraphy, then over all of them."""

    def recorded(name: str, logits: NDArray[np.float32]) -> tuple[str, list[IterationResult]]:
        return name, [IterationResult({OUTPUT_NAME: row[None]}) for row in logits]

    results = RunResults()
    results.append(recorded(PYTORCH, reference))
    results.append(recorded(ONNXRUNTIME, outputs))
    compare_func = MetricCompareFunc()
    Comparator.compare_accuracy(results, compare_func=compare_func)
    return compare_func.metrics()


def _follow(
    spec: ModelSpec,
    images: NDArray[np.float32],
    chosen: dict[str, NDArray[np.int32]],
) -> tuple[NDArray[np.float32], float]:
    """PyTorch's logits when it keeps the lines given, and how many of them it would keep itself."""
    model = build_model(spec)
    logits, kept, agreed = [], 0, 0
    with torch.inference_mode():
        for index, image in enumerate(images):
            lines = {
                name: torch.from_numpy(kept_lines[index : index + 1])
                for name, kept_lines in chosen.items()
            }
            own: dict[str, torch.Tensor] = {}
            handles = [_record_choice(model, name, own) for name in lines]
            with forced_selections(model, lines):
                logits.append(model(torch.from_numpy(image[None])).numpy())
            for handle in handles:
                handle.remove()
            for name, theirs in lines.items():
                kept += theirs.numel()
                # Where windows choose, each is compared with itself.
                agreed += int((theirs[..., :, None] == own[name][..., None, :]).sum())
    return np.concatenate(logits), float(f"{agreed / kept:.6g}")


def _record_choice(
    model: VMamba, name: str, own: dict[str, torch.Tensor]
) -> torch.utils.hooks.RemovableHandle:
    """Note which lines would be chosen by their scores, whatever is forced to be kept."""
    module = model.get_submodule(name)
    assert isinstance(module, LineChoice)  # values of the graph have their names

    def note(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        own[name] = module.choose(*inputs)

    return module.register_forward_pre_hook(note)


def expose(proto: onnx.ModelProto, names: list[str]) -> None:
    """Make inner values outputs of a graph, in place."""
    known = {v.name: v for v in proto.graph.value_info}
    proto.graph.output.extend(known[name] for name in names)


def first_diverging_layer(
    spec: ModelSpec, path: Path, images: NDArray[np.float32], tolerance: float
) -> str | None:
    """The first layer whose output leaves the tolerance, on the first batch of images.

    Layers are modules of the PyTorch model (``layers.2.blocks.4``); values of the graph carry
    the same names.

    Args:
        spec: To build the PyTorch model from.
        path: The native graph.
        images: [n, 3, H, W].
        tolerance: Relative L2 of one layer's output.

    Returns:
        The layer's name; the output's name where only that diverges; None where nothing does.
    """
    proto = load_onnx(path)
    typed = {v.name for v in proto.graph.value_info}
    layers = [name for name in boundary_values(proto.graph) if name in typed]
    lines = selection_values(proto.graph)
    expose(proto, [*layers, *lines])
    (part, count), *_ = batches(images[: spec.batch], spec.batch)
    session = open_session(proto.SerializeToString(), str(path))
    names = [*layers, OUTPUT_NAME, *lines]
    outputs = dict(zip(names, session.run(names, {INPUT_NAME: part}), strict=True))
    forced = {name: torch.from_numpy(outputs[name]) for name in lines}
    reference = _module_outputs(spec, part, layers, forced)
    for name in (*layers, OUTPUT_NAME):
        ours = np.asarray(outputs[name])[:count].astype(np.float64)
        if relative_l2(ours, reference[name][:count].astype(np.float64)) > tolerance:
            return name
    return None


def _module_outputs(
    spec: ModelSpec,
    images: NDArray[np.float32],
    layers: list[str],
    selections: dict[str, torch.Tensor],
) -> dict[str, NDArray[np.float32]]:
    model = build_model(spec)
    found: dict[str, NDArray[np.float32]] = {}

    def keep(name: str, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        assert isinstance(tensor, torch.Tensor)  # modules on a boundary return maps
        found[name] = tensor.numpy()

    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: keep(name, output)
        )
        for name in layers
    ]
    with torch.inference_mode(), forced_selections(model, selections):
        found[OUTPUT_NAME] = model(torch.from_numpy(images)).numpy()
    for handle in handles:
        handle.remove()
    return found
