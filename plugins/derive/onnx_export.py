# SPDX-License-Identifier: Apache-2.0
"""``PluginSpec`` -> how ``torch.onnx.export`` translates the operator: one opaque marker node.

The translation *calls* the operator in our domain. Handing the exporter an onnxscript function
with the operator's body instead would have the body inlined, and the marker would be gone.
"""

from __future__ import annotations

from collections.abc import Callable

import onnxscript
import onnxscript.values
import torch
from onnxscript.onnx_opset import opset18  # noqa: F401  # names the opset for the tracer

from stormrt.plugins.derive.onnx_schema import register_schema
from stormrt.plugins.registry import all_plugins, plugin_module
from stormrt.plugins.spec import DOMAIN, DOMAIN_VERSION, PluginSpec


def translation(spec: PluginSpec) -> Callable[..., object]:
    """A function that emits the marker node when the exporter calls it with symbolic values."""
    op = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, DOMAIN_VERSION), spec.name)
    attributes = spec.attributes()

    def emit(*tensors: object) -> object:
        return op(*tensors, **attributes)

    return emit


def translation_table() -> dict[Callable[..., object], Callable[..., object]]:
    """PyTorch operator -> translation, for every plugin that has a PyTorch operator."""
    table: dict[Callable[..., object], Callable[..., object]] = {}
    for spec in all_plugins().values():
        register_schema(spec)
        plugin_module(spec, "torch_op")
        overload = getattr(getattr(torch.ops, DOMAIN), spec.torch_name).default
        table[overload] = translation(spec)
    return table
