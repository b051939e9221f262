# SPDX-License-Identifier: Apache-2.0
"""Initialisers of a graph, read and replaced by the nodes that read them."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from stormrt.pipeline.rewrite.values import consumers


class Constants:
    """The FP32 initialisers of a graph.

    Args:
        graph: Whose; its nodes' inputs change only through ``replace`` while this is in use.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._readers = consumers(graph)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str) -> NDArray[np.float32]:
        """A copy of its values."""
        return np.array(numpy_helper.to_array(self._tensors[name]), np.float32)

    def replace(self, node: onnx.NodeProto, index: int, values: NDArray[np.float32]) -> None:
        """Give a node other values for the initialiser that it reads as input ``index``.

        Equal initialisers are stored once, so that other nodes may read the same one: they keep it.
        """
        name = node.input[index]
        if len(self._readers[name]) > 1:
            self._readers[name].remove(node)
            name = f"{node.name}:{index}"
            self._tensors[name] = self._graph.initializer.add()
            self._readers[name] = [node]
            node.input[index] = name
        tensor = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
        self._tensors[name].CopyFrom(tensor)
