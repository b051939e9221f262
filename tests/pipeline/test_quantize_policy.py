# SPDX-License-Identifier: Apache-2.0
"""Which nodes become INT8.

What can go wrong: a layer of the step size becomes INT8 because its name changed, a pattern with a
typing error keeps nothing and nobody notices.
"""

from __future__ import annotations

import re

import pytest

from stormrt.errors import InputError
from stormrt.pipeline.quantize.policy import (
    DEFAULT_POLICY,
    QuantizationPolicy,
    calibrated_tensors,
    kept_nodes,
    linear_nodes,
    quantised_nodes,
    residual_adds,
)
from tests.pipeline.support import Graphs, ops

KEPT = re.compile(r"\.op/Conv(_2)?|.*\.conv2d/Conv|classifier\.head/Conv")
"""What the default policy keeps, in a test's own words."""

models = pytest.mark.parametrize("graphs", ["dense", "reduced", "gated"])


@pytest.fixture
def exported(request: pytest.FixtureRequest, graphs: str):
    return request.getfixturevalue(graphs).exported


@models
def test_every_linear_node_is_either_quantised_or_kept_for_a_reason(exported):
    linear = [node.name for node in linear_nodes(exported)]
    assert linear == [node.name for node in ops(exported, "Conv")]
    quantised = [node.name for node in quantised_nodes(exported)]
    kept = kept_nodes(exported)
    assert sorted([*quantised, *(node.name for node in kept)]) == sorted(linear)
    assert all(node.reason for node in kept)


@models
def test_the_step_sizes_path_the_depthwise_convs_and_the_head_stay_in_float(exported):
    blocks = sum(n.op_type == "SelectiveScan2D" for n in exported.graph.node)
    kept = [node.name for node in kept_nodes(exported)]
    assert len(kept) == 3 * blocks + 1
    assert all(KEPT.search(name) for name in kept)
    assert not any(KEPT.search(node.name) for node in quantised_nodes(exported))


def test_what_feeds_the_scan_is_what_the_first_rule_keeps(dense: Graphs):
    made_by = {o: node for node in dense.exported.graph.node for o in node.output}
    kept = {node.name for node in kept_nodes(dense.exported)}
    for scan in ops(dense.exported, "SelectiveScan2D"):
        dt = made_by[scan.input[1]]
        split = made_by[dt.input[0]]
        assert {dt.name, made_by[split.input[0]].name} <= kept


def test_a_node_is_described_by_the_names_of_its_values(dense: Graphs):
    found = {node.name: node for node in linear_nodes(dense.exported)}
    fc1 = found["layers.2.blocks.1.mlp.fc1/Conv"]
    assert fc1.op_type == "Conv"
    assert fc1.activation == "layers.2.blocks.1.norm2/Transpose_2"
    assert fc1.weight == "layers.2.blocks.1.mlp.fc1.weight"
    assert (fc1.weight_axis, fc1.groups) == (0, 1)
    # The exporter leaves out a bias of zeros, as random weights have in their blocks.
    assert fc1.bias is None
    assert found["patch_embed.0/Conv"].bias == "patch_embed.0.bias"
    assert found["layers.2.blocks.1.op/Conv_2"].groups == 4


def test_a_recipes_pattern_keeps_more(dense: Graphs):
    policy = DEFAULT_POLICY.keeping([r"^patch_embed\.", r"fc2/"])
    more = {node.name for node in kept_nodes(dense.exported, policy)}
    assert more - {node.name for node in kept_nodes(dense.exported)} == {
        node.name
        for node in linear_nodes(dense.exported)
        if "fc2" in node.name or node.name.startswith("patch_embed")
    }
    reasons = {node.name: node.reason for node in kept_nodes(dense.exported, policy)}
    assert reasons["patch_embed.0/Conv"] == "the recipe says so"


def test_nodes_are_kept_by_their_full_names(dense: Graphs):
    name = "layers.2.blocks.1.mlp.fc1/Conv"
    policy = DEFAULT_POLICY.keeping_nodes([name], "measured")
    more = {n.name: n.reason for n in kept_nodes(dense.exported, policy)}
    assert more.pop(name) == "measured"
    assert more == {n.name: n.reason for n in kept_nodes(dense.exported)}


@pytest.mark.parametrize("pattern", ["layers.0.blocks.0.op.inproj", r"^mlp\.fc1", "Gemm"])
def test_a_pattern_that_matches_nothing_is_refused(dense: Graphs, pattern):
    with pytest.raises(InputError, match="matches nothing") as caught:
        quantised_nodes(dense.exported, DEFAULT_POLICY.keeping([pattern]))
    assert caught.value.got == pattern
    assert "patch_embed.0/Conv" in str(caught.value.expected)


def test_a_pattern_that_is_no_regular_expression_is_refused(dense: Graphs):
    with pytest.raises(InputError, match="no regular expression") as caught:
        quantised_nodes(dense.exported, DEFAULT_POLICY.keeping(["fc(1"]))
    assert caught.value.got == "fc(1"


def test_residual_additions_are_those_behind_an_int8_node(reduced: Graphs):
    assert residual_adds(reduced.exported) == ()
    adds = residual_adds(reduced.exported, QuantizationPolicy(residuals=True))
    assert [add.name for add in adds] == [
        f"layers.{stage}.blocks.{block}/Add{second}"
        for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
        for second in ("", "_2")
    ]


def test_a_residual_addition_can_be_kept_in_float_too(dense: Graphs):
    policy = QuantizationPolicy(residuals=True).keeping([r"^layers\.0\.blocks\.0/Add$"])
    names = [add.name for add in residual_adds(dense.exported, policy)]
    assert len(names) == 9
    assert "layers.0.blocks.0/Add" not in names


@models
def test_calibration_is_told_every_tensor_that_quantising_needs(exported):
    policy = QuantizationPolicy(residuals=True)
    wanted = calibrated_tensors(exported, policy)
    assert len(wanted) == len(set(wanted))
    needed = {node.activation for node in quantised_nodes(exported, policy)}
    for add in residual_adds(exported, policy):
        needed |= set(add.input)
    assert set(wanted) == needed
    assert wanted[0] == "images"
