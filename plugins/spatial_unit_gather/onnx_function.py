# SPDX-License-Identifier: Apache-2.0
"""SpatialUnitGather in standard ONNX ops."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from stormrt.plugins.spatial_unit_gather import SPEC
from stormrt.plugins.spec import DOMAIN

_OPSET = 18


def function_for(symbols: Mapping[str, int | str], dtype: str) -> onnx.FunctionProto:
    """The function for one node's shapes.

    Positions of the kept crossings in the flattened map are gathered by one GatherND over
    channels-last data, so that each position is one contiguous copy of C values.

    Args:
        symbols: The solved symbols of ``SPEC``; C, H and W must be numbers, B need not be.
        dtype: ``float32`` or ``float16``; a gather does not depend on it.

    Returns:
        The function, its ``overload`` naming the shapes.
    """
    channels, height, width = (int(symbols[s]) for s in ("C", "H", "W"))
    nodes = [
        _constant("last_axis", [2]),
        _constant("middle_axis", [1]),
        _constant("map_width", [width]),
        _constant("flat_shape", [0, channels, height * width]),
        helper.make_node("Cast", ["rows"], ["rows64"], "rows64", to=TensorProto.INT64),
        helper.make_node("Cast", ["cols"], ["cols64"], "cols64", to=TensorProto.INT64),
        helper.make_node("Mul", ["rows64", "map_width"], ["row_starts"], "row_starts"),
        helper.make_node("Unsqueeze", ["row_starts", "last_axis"], ["starts"], "starts"),
        helper.make_node("Unsqueeze", ["cols64", "middle_axis"], ["offsets"], "offsets"),
        helper.make_node("Add", ["starts", "offsets"], ["positions"], "positions"),
        _constant("index_axis", [3]),
        helper.make_node("Unsqueeze", ["positions", "index_axis"], ["indices"], "indices"),
        helper.make_node("Reshape", ["x", "flat_shape"], ["flat"], "flat"),
        helper.make_node("Transpose", ["flat"], ["tokens"], "tokens", perm=[0, 2, 1]),
        helper.make_node("GatherND", ["tokens", "indices"], ["kept"], "kept", batch_dims=1),
        helper.make_node("Transpose", ["kept"], ["y"], "map", perm=[0, 3, 1, 2]),
    ]
    return helper.make_function(
        DOMAIN,
        SPEC.name,
        [t.name for t in SPEC.inputs],
        [t.name for t in SPEC.outputs],
        nodes,
        [helper.make_opsetid("", _OPSET)],
        overload=f"c{channels}_h{height}_w{width}",
        doc_string=SPEC.doc,
    )


def _constant(name: str, values: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name, value_ints=values)
