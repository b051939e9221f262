# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant (Xiao et al. 2023): what outlies moves from activations into weights.

A channel of an activation is divided by s and the weights that read it are multiplied by s. Nothing
is left of it at run time where the activation comes from a LayerNormalization, whose scale and bias
take the division. In VMamba these are in_proj, out_proj and fc1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from stormrt.errors import InputError
from stormrt.pipeline.quantize.constants import Constants
from stormrt.pipeline.quantize.policy import QuantisedNode, linear_nodes
from stormrt.pipeline.rewrite.values import consumers, producers, value_types

DEFAULT_STRENGTH = 0.5
"""The paper's alpha."""


@dataclass(frozen=True, slots=True)
class _Smoothable:
    norm: onnx.NodeProto
    values: tuple[str, ...]
    """From the normalisation's output to the tensor."""
    readers: tuple[QuantisedNode, ...]


def smoothing_scales(
    model: onnx.ModelProto,
    nodes: Sequence[QuantisedNode],
    channel_largest: Mapping[str, NDArray[np.float32]],
    strength: float = DEFAULT_STRENGTH,
) -> dict[str, NDArray[np.float32]]:
    """What to divide the channels of each activation by that can be smoothed at no cost.

    s_c = max|x_c|^strength / max|w_c|^(1 - strength), the paper's equation 4. Left out are
    activations that do not come from a normalisation alone, and those that something else than
    linear nodes reads, as STORM's scores do.

    Args:
        model: An exported graph.
        nodes: Of ``quantised_nodes``.
        channel_largest: By activation, [C] largest |x| of each channel.
        strength: From 0 (weights are as even as can be) to 1 (activations are).

    Returns:
        By activation, [C], above 0.

    Raises:
        InputError: The largest values of an activation are missing, of another length, or not
            finite; a strength that is no share.
    """
    if not 0 <= strength <= 1:
        raise InputError(
            "the strength of smoothing is no share", got=str(strength), expected="0 to 1"
        )
    constants = Constants(model.graph)
    scales = {}
    for tensor, found in _smoothable(model).items():
        if not any(node.activation == tensor for node in nodes):
            continue
        channels = len(constants.read(found.norm.input[1]))
        largest = channel_largest.get(tensor)
        _check_channels(tensor, largest, channels, zero_allowed=True)
        assert largest is not None
        weights = np.max([_largest_by_input(constants, node) for node in found.readers], axis=0)
        x, w = largest.astype(np.float64), weights.astype(np.float64)
        # A channel that is always zero, or that nobody weighs, has nothing to be smoothed.
        alive = (x > 0) & (w > 0)
        x, w = np.where(alive, x, 1.0), np.where(alive, w, 1.0)
        scales[tensor] = (x**strength / w ** (1 - strength)).astype(np.float32)
    return scales


def fold_smoothing(model: onnx.ModelProto, scales: Mapping[str, NDArray[np.float32]]) -> int:
    """Fold in place: normalisations are divided, the weights behind them multiplied.

    Before::

        LayerNormalization(x, gamma, beta) -> Transpose -> a; Conv(a, w)

    After, the same output::

        LayerNormalization(x, gamma / s, beta / s) -> Transpose -> a / s; Conv(a / s, w * s)

    Args:
        model: The graph that the scales were made for.
        scales: Of ``smoothing_scales``.

    Returns:
        The number of tensors smoothed.

    Raises:
        InputError: A tensor cannot be smoothed, or has another number of channels: the scales are
            of another graph.
    """
    smoothable = _smoothable(model)
    constants = Constants(model.graph)
    nodes = {node.name: node for node in model.graph.node}
    for tensor, scale in scales.items():
        found = smoothable.get(tensor)
        if found is None:
            raise InputError(
                "a tensor of the calibration table cannot be smoothed in this graph",
                where=tensor,
                fix="calibrate again, with this model and STORM plan",
            )
        gamma = constants.read(found.norm.input[1])
        _check_channels(tensor, scale, len(gamma), zero_allowed=False)
        for index in range(1, len(found.norm.input)):
            constants.replace(found.norm, index, constants.read(found.norm.input[index]) / scale)
        for reader in found.readers:
            node = nodes[reader.name]
            weight = constants.read(node.input[1])
            constants.replace(node, 1, weight * _along_inputs(scale, weight, reader))
    return len(scales)


def smoothing_factors(
    model: onnx.ModelProto, scales: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """How much larger values of the graph can be than of its smoothed copy.

    Args:
        model: The graph before smoothing.
        scales: By smoothed tensor, [C].

    Returns:
        By value that smoothing divides, the largest of its channels' divisors.
    """
    found = _smoothable(model)
    return {
        value: float(max(scale))
        for tensor, scale in scales.items()
        if tensor in found
        for value in found[tensor].values
    }


def _smoothable(model: onnx.ModelProto) -> dict[str, _Smoothable]:
    graph = model.graph
    by_output, by_input = producers(graph), consumers(graph)
    types, constants = value_types(graph), Constants(graph)
    outputs = {value.name for value in graph.output}
    linear = {node.name: node for node in linear_nodes(model)}
    found = {}
    for tensor in dict.fromkeys(node.activation for node in linear.values()):
        readers = by_input[tensor]
        if tensor in outputs or any(r.name not in linear or r.input[1] == tensor for r in readers):
            continue
        if any(linear[r.name].op_type == "MatMul" for r in readers):
            continue  # its channels are the last axis, not axis 1
        axis, value, values = 1, tensor, [tensor]
        maker = by_output.get(value)
        while maker is not None and maker.op_type == "Transpose":
            axis = next(a for a in maker.attribute if a.name == "perm").ints[axis]
            value = maker.input[0]
            values.append(value)
            maker = by_output.get(value)
            if len(by_input[value]) > 1 or value in outputs:
                maker = None
        if maker is None or maker.op_type != "LayerNormalization" or len(maker.output) > 1:
            continue
        rank = len(types[value].shape or ())
        normalised = next((a.i for a in maker.attribute if a.name == "axis"), -1)
        if axis != rank - 1 or normalised not in (-1, rank - 1):
            continue
        if all(name in constants for name in maker.input[1:]):
            found[tensor] = _Smoothable(
                maker, tuple(reversed(values)), tuple(linear[r.name] for r in readers)
            )
    return found


def _largest_by_input(constants: Constants, node: QuantisedNode) -> NDArray[np.float32]:
    """[C_in] largest |w| that multiplies each input channel."""
    weight = np.abs(np.moveaxis(constants.read(node.weight), node.weight_axis, 0))
    grouped = weight.reshape(node.groups, -1, weight.shape[1], weight[0, 0].size)
    largest: NDArray[np.float32] = grouped.max(axis=(1, 3)).reshape(-1)
    return largest


def _along_inputs(
    scale: NDArray[np.float32], weight: NDArray[np.float32], node: QuantisedNode
) -> NDArray[np.float32]:
    """[C_in] -> what the weight is multiplied by."""
    if node.op_type == "Gemm":
        return scale if node.weight_axis == 0 else scale[:, None]
    by_group = scale.reshape(node.groups, -1)
    by_output = np.repeat(by_group, weight.shape[0] // node.groups, axis=0)
    return by_output.reshape(*by_output.shape, *[1] * (weight.ndim - 2))


def _check_channels(
    tensor: str, values: NDArray[np.float32] | None, channels: int, *, zero_allowed: bool
) -> None:
    if values is None:
        got = "nothing"
    elif values.shape != (channels,):
        got = f"{values.size} channels"
    elif not np.isfinite(values).all() or (values < 0).any() or not (zero_allowed or values.all()):
        got = "values that are not finite, or not positive"
    else:
        return
    raise InputError(
        "what the calibration says of a tensor's channels does not fit the graph",
        where=tensor,
        got=got,
        expected=f"{channels} channels",
        fix="calibrate again, with this model and STORM plan",
    )
