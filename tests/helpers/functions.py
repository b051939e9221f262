# SPDX-License-Identifier: Apache-2.0
"""An operator's ONNX function, run by onnxruntime; and the operator, exported by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from stormrt.pipeline.lower import lower_model
from stormrt.pipeline.rewrite.schedule import AFTER_EXPORT, run_passes
from stormrt.plugins.derive.onnx_export import translation_table
from stormrt.plugins.registry import plugin_module
from stormrt.plugins.spec import PluginSpec

_KINDS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int32": TensorProto.INT32,
}


class FunctionSession:
    """One node of an operator with its function, for any batch.

    Args:
        spec: The operator.
        shapes: Of its inputs, in the order of the spec; the batch among them is left free.
        dtype: What ``T`` is.
    """

    def __init__(self, spec: PluginSpec, shapes: Sequence[Sequence[int]], dtype: str) -> None:
        symbols = spec.bind(shapes) | {"B": "batch"}
        function = plugin_module(spec, "onnx_function").function_for(symbols, dtype)

        def value(tensor):
            kind = _KINDS[dtype if tensor.dtype == "T" else tensor.dtype]
            return helper.make_tensor_value_info(
                tensor.name, kind, [symbols[s] for s in tensor.shape]
            )

        names = [[t.name for t in group] for group in (spec.inputs, spec.outputs)]
        node = helper.make_node(
            spec.name, *names, domain=function.domain, overload=function.overload
        )
        graph = helper.make_graph(
            [node], "one", [value(t) for t in spec.inputs], [value(t) for t in spec.outputs]
        )
        opsets = [helper.make_opsetid(*o) for o in (("", 18), (function.domain, 1))]
        self.model = helper.make_model(
            graph, functions=[function], opset_imports=opsets, ir_version=10
        )
        onnx.checker.check_model(self.model, full_check=True)
        self._session = _session(self.model)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        (y,) = self._session.run(None, dict(inputs))
        return y


def exported(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    """Export a module as the pipeline would, and lower it to standard ops."""
    program = torch.onnx.export(
        module.eval(),
        arguments,
        dynamo=True,
        opset_version=18,
        custom_translation_table=translation_table(),
        verbose=False,
    )
    model = program.model_proto
    run_passes(model, AFTER_EXPORT)
    lower_model(model, "native")
    return model


def run_model(model: onnx.ModelProto, arguments: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    """Run a graph in onnxruntime, its inputs in their order."""
    names = [value.name for value in model.graph.input]
    values = [argument.numpy() for argument in arguments]
    return _session(model).run(None, dict(zip(names, values, strict=True)))


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
