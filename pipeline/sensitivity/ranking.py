# SPDX-License-Identifier: Apache-2.0
"""Layers, the worst first: each alone in INT8, all else in FP32."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from stormrt.calibration.table import CalibrationTable
from stormrt.pipeline.files import sha256_text
from stormrt.pipeline.provenance import tools
from stormrt.pipeline.schema import LayerSensitivity, SensitivityReport
from stormrt.pipeline.sensitivity.bench import Bench, Subject, copied
from stormrt.pipeline.sensitivity.options import Extra

if TYPE_CHECKING:
    import onnx

    from stormrt.calibration.images import ImageEvent

Kind = Literal["linear", "depthwise", "residual"]

_RANKING = "ranking layers"


def quantising_only(
    model: onnx.ModelProto, table: CalibrationTable, names: Collection[str]
) -> onnx.ModelProto:
    """A native graph in which these nodes are INT8, by the table, and all else is FP32.

    Args:
        model: The exported graph that the table was made of; it is not changed.
        table: Its ranges.
        names: Linear nodes and residual additions, whatever the policy says of them.

    Raises:
        InputError: The table is not of this graph.
    """
    from stormrt.pipeline.lower import lower_model
    from stormrt.pipeline.quantize.int8 import insert_qdq
    from stormrt.pipeline.quantize.placement import place_qdq
    from stormrt.pipeline.quantize.policy import QuantizationPolicy, linear_nodes
    from stormrt.pipeline.quantize.weights import activation_scale
    from stormrt.pipeline.rewrite.attach_functions import attach_functions

    linear = [node.name for node in linear_nodes(model)]
    others = [name for name in linear if name not in names]
    policy = QuantizationPolicy(rules=()).keeping_nodes(others, "it is not looked at")
    adds = [n for n in model.graph.node if n.op_type == "Add" and n.name in names]
    scales = {name: activation_scale(table.tensors[name].amax) for n in adds for name in n.input}
    copy = copied(model)
    insert_qdq(copy, table, policy)
    if adds:  # the policy places them only behind INT8 nodes
        place_qdq(copy, (), [node.name for node in adds], scales)
    attach_functions(copy)
    lower_model(copy, "native")
    return copy


def rank_layers(
    subject: Subject, extra: Collection[Extra] = (), *, on_step: ImageEvent = lambda *_: None
) -> SensitivityReport:
    """Quantise each layer alone and see what becomes of the output.

    Layers are those that the default policy quantises. A node beside a value that overflows FP16
    is none: a build leaves it in float.

    Args:
        subject: What is ranked. What an earlier run has kept in its folder is taken up if it is of
            the same graph, table, images and code.
        extra: More layers to rank; no budget counts them, since a build does not quantise them.
        on_step: Told of each layer.

    Returns:
        The report, the layer with the largest error first.

    Raises:
        InputError: A table of another graph; FP32 outputs that are not finite; labelled images of
            other classes than the model's.
    """
    bench, count = Bench(subject), len(subject.images)
    layers = layers_to_rank(bench.model, subject.table, extra)
    on_step(_RANKING, 0, len(layers))
    for done, (name, kind) in enumerate(layers.items(), 1):
        if name not in bench.kept.layers:
            graph = quantising_only(bench.model, subject.table, (name,))
            bench.kept.layers[name] = LayerSensitivity(
                layer=name, kind=kind, **bench.measured(graph, count)
            )
            bench.save()
        on_step(_RANKING, done, len(layers))
    # Equal ones stay in the order of the graph.
    found = sorted((bench.kept.layers[name] for name in layers), key=lambda s: -s.rel_l2)
    return SensitivityReport(
        graph_sha256=subject.table.graph_sha256,
        table_sha256=sha256_text(subject.table.to_json()),
        model=subject.table.model,
        plan=subject.table.plan,
        images=count,
        labelled=None if subject.labelled is None else str(subject.labelled),
        labelled_images=bench.labelled(count),
        top1=bench.fp32_top1(count),
        layers=tuple(found),
        mixed=None,
        tools=tools(),
    )


def layers_to_rank(
    model: onnx.ModelProto, table: CalibrationTable, extra: Collection[Extra]
) -> dict[str, Kind]:
    """What is ranked, in the order of the graph, by name."""
    from stormrt.pipeline.quantize.overflow import search_overflow
    from stormrt.pipeline.quantize.policy import (
        DEFAULT_POLICY,
        linear_nodes,
        quantised_nodes,
        residual_adds,
    )

    islands = search_overflow(model, table, smoothed=True).islands
    kinds: dict[str, Kind] = {node.name: "linear" for node in quantised_nodes(model)}
    if "depthwise" in extra:
        more = [node.name for node in linear_nodes(model) if node.groups > 1]
        kinds = {**dict.fromkeys(more, "depthwise"), **kinds}
    if "residual" in extra:
        for add in residual_adds(model, replace(DEFAULT_POLICY, residuals=True)):
            kinds[add.name] = "residual"
    names = [node.name for node in model.graph.node if node.name not in islands]
    return {name: kinds[name] for name in names if name in kinds}
