# SPDX-License-Identifier: Apache-2.0
"""SpatialUnitGather in standard ONNX ops."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from stormrt.plugins.derive.onnx_function import FunctionBody, copy_lines, function_of
from stormrt.plugins.spatial_unit_gather import SPEC


def function_for(symbols: Mapping[str, int | str], dtype: str) -> onnx.FunctionProto:
    """The function for one node's shapes.

    Args:
        symbols: The solved symbols of ``SPEC``; C, H and W must be numbers, B need not be.
        dtype: ``float32`` or ``float16``; a gather does not depend on it.

    Returns:
        The function, its ``overload`` naming the shapes.
    """
    channels, height, width = (int(symbols[s]) for s in ("C", "H", "W"))
    body = FunctionBody()
    rows, cols = (
        body.op("Cast", name, out=f"{name}64", to=TensorProto.INT64) for name in ("rows", "cols")
    )
    copy_lines(body, "x", rows, cols, shape=(channels, height, width), out="y")
    overload = f"c{channels}_h{height}_w{width}"
    return function_of(SPEC, body, overload)
