# SPDX-License-Identifier: Apache-2.0
"""Metrics, the comparison of a graph with PyTorch, verdicts, and the layer that is to blame.

What can go wrong: NaN that passes, a defect that is blamed on the wrong layer, a graph that fails
for having kept the other of two equal lines, or one that passes though it keeps others.
"""

from __future__ import annotations

import json
import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from stormrt.errors import InputError
from stormrt.pipeline.comparison import (
    Comparison,
    batches,
    compare_images,
    first_diverging_layer,
    run_onnxruntime,
)
from stormrt.pipeline.metrics import Metrics, compare, relative_l2
from stormrt.pipeline.onnx_file import save_onnx
from stormrt.pipeline.photographs import find_photographs, preprocess_all
from stormrt.pipeline.report import to_markdown
from stormrt.pipeline.schema import Tolerances, ValidationReport, ValidationRow
from stormrt.pipeline.validate import judge
from tests.pipeline.support import model_spec, run_torch

LOOSE = Tolerances(rel_l2=1e-2, cosine=0.99, argmax_agreement=0.9, selection_agreement=0.9)
GOOD = Metrics(10, 1e-3, 1e-4, 1e-3, 2e-3, 0.9999, 1.0)


class TestMetrics:
    def test_equal_outputs_have_no_distance(self, rng):
        x = rng.standard_normal((4, 5)).astype(np.float32)
        found = compare(x, x.copy())
        assert (found.images, found.max_abs, found.mean_abs) == (4, 0.0, 0.0)
        assert (found.rel_l2, found.rel_l2_worst) == (0.0, 0.0)
        assert (found.cosine, found.argmax_agreement) == (1.0, 1.0)

    def test_hand_made_numbers(self):
        reference = np.array([[3.0, 4.0], [0.0, 10.0]], np.float32)
        outputs = np.array([[3.0, 3.0], [0.0, 10.0]], np.float32)
        found = compare(outputs, reference)
        assert found.max_abs == 1.0
        assert found.mean_abs == 0.25
        assert found.rel_l2 == pytest.approx(1 / math.sqrt(125), rel=1e-5)
        assert found.rel_l2_worst == pytest.approx(1 / 5, rel=1e-5)
        expected_cosine = (9 + 12 + 100) / math.sqrt((9 + 9 + 100) * 125)
        assert found.cosine == pytest.approx(expected_cosine, rel=1e-5)
        assert found.argmax_agreement == 0.5

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_one_value_that_is_not_finite_is_an_infinite_distance(self, bad):
        reference = np.ones((2, 3), np.float32)
        outputs = reference.copy()
        outputs[1, 2] = bad
        found = compare(outputs, reference)
        assert found.rel_l2 == found.rel_l2_worst == found.max_abs == math.inf
        assert found.argmax_agreement == 0.0

    def test_an_fp16_overflow_of_both_sides_does_not_pass_either(self):
        both = np.full((1, 3), np.inf, np.float32)
        assert judge("r", "g", comparison(compare(both, both)), LOOSE).status == "failed"

    def test_a_reference_that_is_not_finite_never_passes(self):
        reference = np.array([[1.0, np.nan]], np.float32)
        found = compare(np.ones((1, 2), np.float32), reference)
        assert judge("r", "g", comparison(found), LOOSE).status == "failed"

    def test_a_reference_of_zeros_is_met_by_zeros_alone(self):
        zeros = np.zeros((1, 3), np.float32)
        assert compare(zeros, zeros).rel_l2 == 0.0
        assert compare(zeros, zeros).cosine == 1.0
        assert compare(np.full((1, 3), 1e-9, np.float32), zeros).rel_l2 == math.inf
        assert relative_l2(np.array([np.nan]), np.array([1.0])) == math.inf

    def test_different_shapes_are_refused(self):
        with pytest.raises(ValueError, match="differ in shape"):
            compare(np.ones((2, 3), np.float32), np.ones((3, 2), np.float32))

    def test_polygraphys_comparator_is_given_every_image(self, rng):
        x = rng.standard_normal((5, 7)).astype(np.float32)
        y = x + np.float32(0.01)
        assert compare_images(y, x) == compare(y, x)


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (4, 2), (5, 2), (1, 3), (7, 3)])
def test_batches_hold_every_image_once_and_are_all_full(rng, count, batch):
    x = rng.standard_normal((count, 2)).astype(np.float32)
    cut = batches(x, batch)
    assert {len(part) for part, _ in cut} == {batch}
    np.testing.assert_array_equal(np.concatenate([part[:n] for part, n in cut]), x)


def comparison(
    metrics: Metrics, agreement: float | None = None, end_to_end: Metrics | None = None
) -> Comparison:
    return Comparison(metrics, end_to_end or metrics, agreement)


class TestJudge:
    def test_a_comparison_within_every_threshold_passes(self):
        row = judge("onnxruntime", "native", comparison(GOOD, 1.0), LOOSE)
        assert (row.status, row.reason) == ("passed", "")
        assert row.metrics == GOOD

    def test_thresholds_themselves_pass(self):
        edge = replace(GOOD, rel_l2=1e-2, cosine=0.99, argmax_agreement=0.9)
        assert judge("r", "g", comparison(edge, 0.9), LOOSE).status == "passed"

    @pytest.mark.parametrize(
        ("change", "agreement", "reason"),
        [
            ({"rel_l2": 0.011}, 1.0, "relative L2 0.011 is over 0.01"),
            ({"rel_l2": math.inf}, 1.0, "relative L2 inf is over 0.01"),
            ({"rel_l2": math.nan}, 1.0, "relative L2 nan is over 0.01"),
            ({"cosine": 0.98}, 1.0, "cosine 0.98 is under 0.99"),
            ({"cosine": math.nan}, 1.0, "cosine nan is under 0.99"),
            ({"argmax_agreement": 0.8}, 1.0, "80.0% of the images"),
            ({}, 0.8, "80.0% of the kept lines"),
            ({}, math.nan, "of the kept lines"),
        ],
    )
    def test_each_threshold_fails_alone_and_tells_both_numbers(self, change, agreement, reason):
        row = judge("r", "g", comparison(replace(GOOD, **change), agreement), LOOSE)
        assert row.status == "failed"
        assert reason in row.reason
        assert ";" not in row.reason

    def test_all_that_failed_is_told(self):
        bad = replace(GOOD, rel_l2=1.0, cosine=0.0, argmax_agreement=0.0)
        row = judge("r", "g", comparison(bad, 0.0), LOOSE)
        assert row.reason.count(";") == 3

    def test_a_dense_model_has_no_lines_to_agree_on(self):
        row = judge("r", "g", comparison(GOOD, None), LOOSE)
        assert row.status == "passed"
        assert row.selection_agreement is None

    def test_a_bad_end_to_end_number_does_not_fail_a_graph_that_kept_other_lines(self):
        far = replace(GOOD, rel_l2=0.5)
        row = judge("r", "g", comparison(GOOD, 0.95, end_to_end=far), LOOSE)
        assert row.status == "passed"
        assert row.end_to_end == far


class TestReport:
    def report(self, *rows: ValidationRow) -> ValidationReport:
        return ValidationReport(
            passed=all(r.status == "passed" for r in rows),
            summary="FAILED: a test",
            model=model_spec(),
            storm="dense",
            weights="random",
            target="t4",
            precision="fp16",
            tolerances=LOOSE,
            rows=rows,
            first_diverging_layer="layers.0.blocks.0",
            sources=("a.png",),
            tools=(),
        )

    def test_infinite_distances_survive_the_way_through_the_file(self, tmp_path):
        bad = compare(np.full((1, 2), np.nan, np.float32), np.ones((1, 2), np.float32))
        report = self.report(judge("onnxruntime", "native", comparison(bad), LOOSE))
        path = tmp_path / "report.json"
        path.write_text(report.to_json())

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        json.loads(path.read_text(), parse_constant=refuse)
        again = ValidationReport.read(path)
        assert again == report
        assert again.rows[0].metrics is not None
        assert again.rows[0].metrics.rel_l2 == math.inf

    def test_markdown_has_the_verdict_first_then_rows_reasons_and_facts(self):
        failed = judge("onnxruntime", "native | fp16", comparison(replace(GOOD, rel_l2=1.0)), LOOSE)
        skipped = ValidationRow(
            runtime="tensorrt",
            graph="no engine",
            status="not run",
            reason="no GPU here",
            metrics=None,
            end_to_end=None,
            selection_agreement=None,
        )
        text = to_markdown(self.report(failed, skipped))
        lines = text.splitlines()
        assert lines[0] == "**FAILED: a test**"
        table = [line for line in lines if line.startswith("|")]
        assert len(table) == 4
        columns = {line.replace("\\|", "").count("|") for line in table}
        assert len(columns) == 1, "every row of a table has as many cells as its heading"
        assert "FAILED" in table[2]
        assert "1.00e+00" in table[2]
        assert "native \\| fp16" in table[2]
        assert "not run: no GPU here" in table[3]
        assert "- **onnxruntime**: relative L2 1 is over 0.01" in text
        assert "- first diverging layer: layers.0.blocks.0" in text
        assert "(dynamic)" not in text


@pytest.fixture(scope="module")
def images(photographs):
    return preprocess_all(find_photographs(photographs), 64, 48)


def corrupt(model: onnx.ModelProto, weight: str) -> onnx.ModelProto:
    """A copy in which one weight is half as large again."""
    changed = deepcopy(model)
    for initializer in changed.graph.initializer:
        if initializer.name == weight:
            array = numpy_helper.to_array(initializer) * np.float32(1.5)
            initializer.CopyFrom(numpy_helper.from_array(array, weight))
            return changed
    raise AssertionError(f"no weight {weight}: {[i.name for i in model.graph.initializer]}")


class TestFirstDivergingLayer:
    def test_a_good_graph_parts_nowhere(self, reduced, images, tmp_path):
        save_onnx(deepcopy(reduced.native), tmp_path / "m.onnx")
        assert first_diverging_layer(reduced.spec, tmp_path / "m.onnx", images, 1e-4) is None

    @pytest.mark.parametrize(
        ("weight", "layer"),
        [
            ("patch_embed.0.weight", "patch_embed"),
            ("layers.0.blocks.0.op.in_proj.weight", "layers.0.blocks.0"),
            ("layers.1.blocks.0.mlp.fc1.weight", "layers.1.blocks.0"),
            ("layers.1.downsample.1.weight", "layers.1.downsample"),
            ("layers.2.blocks.1.op.out_proj.weight", "layers.2.blocks.1"),
            ("layers.3.blocks.0.op.conv2d.weight", "layers.3.blocks.0"),
            ("classifier.head.weight", "logits"),
        ],
    )
    def test_a_corrupted_weight_is_blamed_on_its_layer(
        self, reduced, images, tmp_path, weight, layer
    ):
        save_onnx(corrupt(reduced.native, weight), tmp_path / "m.onnx")
        assert first_diverging_layer(reduced.spec, tmp_path / "m.onnx", images, 1e-4) == layer

    def test_in_fp16_the_layer_is_named_too(self, reduced, images, tmp_path):
        model = deepcopy(reduced.native_fp16)
        (weight,) = [
            i for i in model.graph.initializer if i.name == "layers.1.blocks.0.mlp.fc1.weight"
        ]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 30, weight.name))
        save_onnx(model, tmp_path / "m.onnx")
        found = first_diverging_layer(reduced.spec, tmp_path / "m.onnx", images, 1e-2)
        assert found == "layers.1.blocks.0"


class TestSelections:
    """Graphs that keep other lines than PyTorch: on purpose, or because lines score alike."""

    @pytest.fixture
    def logits(self, reduced, images):
        return run_torch(reduced.spec, images)

    def test_a_faithful_graph_keeps_pytorchs_lines(self, reduced, images, rng, tmp_path):
        save_onnx(deepcopy(reduced.native), tmp_path / "m.onnx")
        agreements = []
        for _ in range(3):
            noise = rng.normal(0, 1, images.shape).astype(np.float32)
            logits = run_torch(reduced.spec, noise)
            found = run_onnxruntime(tmp_path / "m.onnx", reduced.spec, noise, logits)
            agreements.append(found.selection_agreement)
            assert found.metrics.rel_l2 < 1e-4
            if found.selection_agreement == 1.0:
                assert found.end_to_end.rel_l2 < 1e-4
        # On one machine (AMD EPYC) onnxruntime keeps another line than PyTorch, one of 100, on the
        # photographs too, at a relative L2 of 4e-7; on others none. Why was not established: scores
        # that are nearly equal are the guess. So not every picture has to agree in every line; a
        # graph that chose by another rule would agree in none.
        assert max(agreements) == 1.0
        assert min(agreements) > 0.95

    def test_where_fp16_keeps_other_lines_the_followed_comparison_is_still_near_zero(
        self, reduced, images, logits, tmp_path
    ):
        save_onnx(deepcopy(reduced.native_fp16), tmp_path / "m.onnx")
        found = run_onnxruntime(tmp_path / "m.onnx", reduced.spec, images, logits)
        assert found.selection_agreement is not None
        assert found.selection_agreement > 0.5
        assert found.metrics.rel_l2 < 1e-2

    def test_a_graph_that_keeps_other_lines_is_compared_with_pytorch_following_it(
        self, reduced, images, logits, tmp_path
    ):
        model = deepcopy(reduced.native)
        for node in model.graph.node:
            if node.op_type == "ArgMin":
                node.op_type = "ArgMax"  # the best line of each stratum leaves, not the worst
        save_onnx(model, tmp_path / "m.onnx")
        found = run_onnxruntime(tmp_path / "m.onnx", reduced.spec, images, logits)
        assert found.selection_agreement is not None
        assert 0.3 < found.selection_agreement < 0.95
        assert found.metrics.rel_l2 < 1e-4
        assert found.end_to_end.rel_l2 > 10 * found.metrics.rel_l2
        assert first_diverging_layer(reduced.spec, tmp_path / "m.onnx", images, 1e-4) is None

    def test_lines_that_score_alike_may_be_kept_either_way(self, reduced, tmp_path):
        flat = np.full((2, 3, 64, 48), 0.25, np.float32)  # rows and columns inside are all equal
        model = deepcopy(reduced.native)
        for node in model.graph.node:
            if node.op_type == "ArgMin":
                kept = [a for a in node.attribute if a.name != "select_last_index"]
                del node.attribute[:]
                node.attribute.extend([*kept, helper.make_attribute("select_last_index", 1)])
        save_onnx(model, tmp_path / "m.onnx")
        logits = run_torch(reduced.spec, flat)
        found = run_onnxruntime(tmp_path / "m.onnx", reduced.spec, flat, logits)
        assert found.selection_agreement is not None
        assert found.selection_agreement < 1.0
        assert found.metrics.rel_l2 < 1e-4

    def test_a_dense_graph_tells_of_no_lines(self, dense, images, tmp_path):
        save_onnx(deepcopy(dense.native), tmp_path / "m.onnx")
        logits = run_torch(dense.spec, images)
        found = run_onnxruntime(tmp_path / "m.onnx", dense.spec, images, logits)
        assert found.selection_agreement is None
        assert found.metrics == found.end_to_end
        assert found.metrics.images == len(images)
        assert found.metrics.rel_l2 < 1e-4

    def test_a_graph_that_onnxruntime_refuses_is_told_by_its_file(self, reduced, images, tmp_path):
        path = tmp_path / "plugin.onnx"
        save_onnx(deepcopy(reduced.plugin_fp16), path)
        with pytest.raises(InputError, match="onnxruntime refuses") as caught:
            run_onnxruntime(path, reduced.spec, images, np.zeros((4, 7), np.float32))
        assert caught.value.where == str(path)
