# SPDX-License-Identifier: Apache-2.0
"""SpatialUnitScatter in standard ONNX ops."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from stormrt.plugins.derive.onnx_function import FunctionBody, copy_lines, function_of
from stormrt.plugins.spatial_unit_scatter import SPEC


def function_for(symbols: Mapping[str, int | str], dtype: str) -> onnx.FunctionProto:
    """The function for one node's shapes.

    Args:
        symbols: The solved symbols of ``SPEC``; C, H' and W' must be numbers, B need not be.
        dtype: ``float32`` or ``float16``; a copy does not depend on it.

    Returns:
        The function, its ``overload`` naming the shapes.
    """
    channels, kept_rows, kept_cols = (int(symbols[s]) for s in ("C", "H'", "W'"))
    body = FunctionBody()
    rows = clamped(body, "row_of", kept_rows - 1)
    cols = clamped(body, "col_of", kept_cols - 1)
    copy_lines(body, "x", rows, cols, shape=(channels, kept_rows, kept_cols), out="y")
    overload = f"c{channels}_h{kept_rows}_w{kept_cols}"
    return function_of(SPEC, body, overload)


def clamped(body: FunctionBody, index: str, last: int) -> str:
    """Appends a clamp of indices to [0, ``last``]; returns INT64."""
    # Max and Min, since Clip on integers is not everywhere to be had.
    index = body.op("Cast", index, out=f"{index}64", to=TensorProto.INT64)
    low = body.op("Max", index, body.constant(0, np.int64), out=f"{index}_from_0")
    return body.op("Min", low, body.constant(last, np.int64), out=f"{index}_clamped")
