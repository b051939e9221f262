# SPDX-License-Identifier: Apache-2.0
"""PyTorch -> ``ExportedGraph``: one FP32 graph whose custom operators are single nodes.

Interface of every exported graph:

========  ===================  =======  =====================================
name      shape                type     meaning
========  ===================  =======  =====================================
images    [B, 3, H, W]         FP32     normalised photographs
logits    [B, num_classes]     FP32     scores before softmax
========  ===================  =======  =====================================
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch

from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME, ExportedGraph, ModelSpec
from stormrt.pipeline.interruption import held_interrupts
from stormrt.pipeline.model_source import build_model
from stormrt.pipeline.onnx_file import plugin_uses, save_onnx
from stormrt.pipeline.rewrite.schedule import AFTER_EXPORT, run_passes
from stormrt.plugins.derive.onnx_export import translation_table
from stormrt.storm.vmamba import VMamba

OPSET = 18
"""The newest that TensorRT 10.3 (JetPack 6.2) is known to take in full, with LayerNormalization."""


def export_model(model: VMamba, spec: ModelSpec) -> onnx.ModelProto:
    """Export a frozen model.

    Args:
        model: From ``build_model(spec)``.
        spec: Gives the input's shape.

    Returns:
        The graph, named by modules, functions attached.
    """
    # The exporter would specialise a dynamic dimension whose example is 1.
    example_batch = max(2, spec.batch) if spec.dynamic_batch else spec.batch
    example = torch.zeros(example_batch, 3, spec.height, spec.width)
    shapes = None
    if spec.dynamic_batch:
        shapes = ({0: torch.export.Dim("batch", min=1, max=max(2, spec.batch))},)
    with _quiet(), held_interrupts():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=shapes,
            custom_translation_table=translation_table(),
            optimize=True,
            verbose=False,
        )
    assert program is not None  # dynamo=True always returns a program
    proto = program.model_proto
    run_passes(proto, AFTER_EXPORT)
    return proto


def export(spec: ModelSpec, out: Path) -> ExportedGraph:
    """Build the model and write its exported graph.

    Raises:
        InputError: A bad checkpoint, or a folder that cannot be written.
    """
    proto = export_model(build_model(spec), spec)
    file = save_onnx(proto, out)
    return ExportedGraph(file, OPSET, len(proto.graph.node), plugin_uses(proto))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence notes of the exporter about packages that are absent and about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
