# SPDX-License-Identifier: Apache-2.0
"""A graph for nvinfer, which scales all channels alike and wants probabilities.

    images -> Mul by 1 / std of each channel -> the model -> Softmax -> probabilities

The first node makes nvinfer's ``x / 255 - mean`` into what the model was trained on, to FP32's
rounding. Folding the factors into the first convolution would be as right and no faster to speak
of, but would round its FP16 weights a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME

PROBABILITIES = "probabilities"
_SCALED = "stormrt_deepstream_scaled"
_FACTORS = "stormrt_deepstream_inverse_std"


@dataclass(frozen=True, slots=True)
class Agreement:
    """The graph for nvinfer beside the bundle's, in onnxruntime on the golden photographs."""

    images: int
    most_difference: float
    """Of a probability, absolute."""
    same_argmax: int
    """Photographs of the same most probable class."""


def wrap_graph(path: Path, std: Sequence[float]) -> bytes:
    """The graph with the two nodes added.

    Args:
        path: The bundle's graph; it is only read.
        std: Deviation of each channel, RGB in [0, 1].

    Raises:
        InputError: The file is no graph with the bundle's input and output.
        EnvironmentMissingError: onnx is not installed.
    """
    try:
        import onnx

        from stormrt.pipeline.onnx_file import load_onnx
    except ModuleNotFoundError as error:
        raise EnvironmentMissingError(
            "DeepStream's graph is made with the package 'onnx', which is not installed",
            fix='pip install "stormrt[workstation]", or package the bundle on the workstation',
        ) from error
    model = load_onnx(path)
    graph = model.graph
    inputs = [i.name for i in graph.input]
    outputs = [o.name for o in graph.output]
    if inputs != [INPUT_NAME] or outputs != [OUTPUT_NAME]:
        raise InputError(
            "the graph has other inputs or outputs than a classifier of stormrt",
            where=str(path),
            got=f"{', '.join(inputs)} -> {', '.join(outputs)}",
            expected=f"{INPUT_NAME} -> {OUTPUT_NAME}",
        )
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == INPUT_NAME:
                node.input[i] = _SCALED
    float32 = onnx.TensorProto.FLOAT
    factors = [1.0 / s for s in std]
    graph.initializer.append(
        onnx.helper.make_tensor(_FACTORS, float32, (1, len(factors), 1, 1), factors)
    )
    scale = onnx.helper.make_node("Mul", [INPUT_NAME, _FACTORS], [_SCALED], name=_SCALED)
    graph.node.insert(0, scale)
    graph.node.append(
        onnx.helper.make_node(
            "Softmax", [OUTPUT_NAME], [PROBABILITIES], name=PROBABILITIES, axis=-1
        )
    )
    graph.output[0].name = PROBABILITIES
    serialized: bytes = model.SerializeToString()
    return serialized


def compare_graphs(
    model: Path, wrapped: bytes, golden: Path, std: Sequence[float], batch: int
) -> Agreement | None:
    """Run both graphs on the golden photographs.

    Args:
        model: The bundle's graph, of standard ops.
        wrapped: What ``wrap_graph`` made of it.
        golden: The bundle's golden data.
        std: As for ``wrap_graph``.
        batch: Images a call.

    Returns:
        How near they are; None where a package that runs them is not installed.

    Raises:
        InputError: The golden data or the graph is damaged.
    """
    try:
        import numpy as np

        from stormrt.pipeline.comparison import batches, open_session
        from stormrt.pipeline.golden import read_golden
    except ModuleNotFoundError:
        return None
    images, _, _ = read_golden(golden)

    def run(graph: bytes, name: str, inputs: np.ndarray, output: str) -> np.ndarray:
        session = open_session(graph, name)
        parts = [
            session.run([output], {INPUT_NAME: part})[0][:count]
            for part, count in batches(inputs, batch)
        ]
        return np.concatenate(parts)

    logits = run(model.read_bytes(), str(model), images, OUTPUT_NAME)
    # What nvinfer makes of the same pixels: x / 255 - mean.
    offset = images * np.array(std, np.float32).reshape(1, -1, 1, 1)
    found = run(wrapped, "the graph for nvinfer", offset, PROBABILITIES)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponents / exponents.sum(axis=1, keepdims=True)
    return Agreement(
        images=len(images),
        most_difference=float(np.abs(found - expected).max()),
        same_argmax=int((found.argmax(1) == expected.argmax(1)).sum()),
    )


@dataclass(frozen=True, slots=True)
class OneScaleError:
    """What one scale for all channels would be off by, at its best."""

    relative: float
    """Of a normalised value."""
    most: float
    """Largest error of a normalised value, over all pixels 0 to 255."""


def one_scale_error(mean: Sequence[float], std: Sequence[float]) -> OneScaleError:
    """The error of the one scale that is best for the worst channel.

    A scale k makes (x - m) / s into k * (x - m), off by the factor k * s. The worst of |k * s - 1|
    over the channels is least for k = 2 / (least s + largest s).
    """
    k = 2.0 / (min(std) + max(std))
    relative = [abs(k * s - 1.0) for s in std]
    most = max(r * max(m, 1.0 - m) / s for r, m, s in zip(relative, mean, std, strict=True))
    return OneScaleError(max(relative), most)
