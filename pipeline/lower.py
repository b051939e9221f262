# SPDX-License-Identifier: Apache-2.0
"""``QuantizedGraph`` -> ``LoweredGraph``: standard ops only, or custom nodes for plugins."""

from __future__ import annotations

from pathlib import Path

import onnx

from stormrt.pipeline.artifacts import LoweredGraph, LoweredGraphs
from stormrt.pipeline.onnx_file import load_onnx, plugin_uses, save_onnx
from stormrt.pipeline.rewrite.schedule import LOWER_NATIVE, LOWER_PLUGIN, run_passes
from stormrt.targets import Lowering


def lower_model(model: onnx.ModelProto, lowering: Lowering) -> None:
    """Lower in place."""
    run_passes(model, LOWER_NATIVE if lowering == "native" else LOWER_PLUGIN)


def lower(source: Path, out_native: Path, out_plugin: Path | None) -> LoweredGraphs:
    """Write the native graph, and the plugin graph where a path for it is given.

    The native graph is always made: it is what onnxruntime validates, on any machine.

    Raises:
        InputError: The file is damaged, or the folder cannot be written.
    """

    def one(lowering: Lowering, out: Path) -> LoweredGraph:
        model = load_onnx(source)
        lower_model(model, lowering)
        file = save_onnx(model, out)
        return LoweredGraph(file, lowering, len(model.graph.node), plugin_uses(model))

    return LoweredGraphs(
        native=one("native", out_native),
        plugin=one("plugin", out_plugin) if out_plugin else None,
    )
