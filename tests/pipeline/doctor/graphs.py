# SPDX-License-Identifier: Apache-2.0
"""The smallest graphs that have an opset, weights and types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def graph(path: Path, *weights: NDArray[np.generic], opset: int = 18, op: str = "Relu") -> Path:
    """A graph of one node, with weights that only QuantizeLinear reads."""
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(op, ["x"] if op == "Relu" else ["x", "w0"], ["y"])],
            "g",
            [value("x", TensorProto.FLOAT, [1])],
            [value("y", TensorProto.FLOAT, [1])],
            [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("stormrt", 1)],
        ir_version=9,
    )
    onnx.save(model, path)
    return path
