# SPDX-License-Identifier: Apache-2.0
"""A table is refused for another model, with what differs and what to type."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stormrt.calibration.check import check_table, read_table
from stormrt.calibration.table import CalibrationImage, CalibrationTable, TensorRange
from stormrt.errors import InputError
from stormrt.pipeline.artifacts import ModelSpec
from stormrt.storm.plan import Reduction, StormPlan

PLAN = StormPlan((Reduction(0, 1, 40, 40),))
SPEC = ModelSpec(
    name="vmamba_tiny_s1l8",
    num_classes=1000,
    checkpoint="w/weights.pth",
    checkpoint_sha256="a" * 64,
    seed=0,
    height=224,
    width=224,
    batch=1,
    dynamic_batch=False,
    plan=PLAN,
)
GRAPH = "b" * 64


@pytest.fixture
def table() -> CalibrationTable:
    return CalibrationTable(
        graph_sha256=GRAPH,
        model=SPEC,
        plan=PLAN.describe(),
        observer="mse",
        smoothing={"x": (0.5, 2.0)},
        tensors={"x": TensorRange(amax=1.5, largest=2.0, mean=(0.1, -0.2))},
        images=(CalibrationImage(name="a.png", sha256="c" * 64),),
        skipped=(),
        tools=(),
    )


def test_a_table_is_taken_for_what_it_was_made_for(table):
    check_table(table, SPEC, GRAPH)


def test_where_the_weights_lie_and_the_batch_do_not_count(table):
    """Another batch is another graph of the same activations."""
    check_table(table, replace(SPEC, checkpoint="elsewhere/w.pth", seed=3), GRAPH)
    check_table(table, replace(SPEC, batch=4), "d" * 64)
    check_table(table, replace(SPEC, dynamic_batch=True), "d" * 64)


@pytest.mark.parametrize(
    ("changes", "what", "words"),
    [
        ({"name": "vmamba_small_s1l20"}, "another model", ("vmamba_tiny_s1l8", "vmamba_small")),
        ({"num_classes": 10}, "another number of classes", ("--classes 10",)),
        ({"checkpoint_sha256": "e" * 64}, "another checkpoint", ("a" * 64, "e" * 64)),
        (
            {"checkpoint": None, "checkpoint_sha256": None, "seed": 7},
            "another checkpoint",
            ("random, seed 7", "--seed 7"),
        ),
        ({"height": 256}, "another image size", ("224x224", "256x224", "--size 256x224")),
        ({"plan": StormPlan()}, "another STORM plan", ("40x40 lines", "dense")),
        (
            {"plan": StormPlan((replace(PLAN.reductions[0], host="uniform"),))},
            "another STORM plan",
            ("by feature_norm", "by uniform", "--storm PLAN"),
        ),
        (
            {
                "plan": StormPlan(
                    (replace(PLAN.reductions[0], rows=tuple(range(40)), cols=tuple(range(40))),)
                )
            },
            "another STORM plan",
            ("the same in every image",),
        ),
        (
            {"height": 192, "width": 192, "plan": StormPlan()},
            "another image size and another STORM plan",
            ("224x224; stage 0", "192x192; dense", "--size 192x192"),
        ),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_table_of_something_else_is_refused_with_the_difference(
    table, changes, what, words, batch
):
    spec = replace(SPEC, batch=batch, **changes)
    with pytest.raises(InputError, match=f"is of {what}") as refusal:
        check_table(table, spec, GRAPH, where="c.json")
    text = str(refusal.value)
    assert "c.json" in text
    assert f"stormrt calibrate --model {spec.name} " in text
    assert "--data IMAGES --out calibration.json" in text
    for word in words:
        assert word in text
    assert ("--checkpoint w/weights.pth" in text) == (spec.checkpoint is not None)
    assert ("--storm" in text) == bool(spec.plan.reductions)


def test_plans_that_read_the_same_are_told_apart(table):
    lines = tuple(range(40))
    first, second = (
        StormPlan((replace(PLAN.reductions[0], rows=rows, cols=lines),))
        for rows in (lines, tuple(range(1, 41)))
    )
    table = table.model_copy(update={"model": replace(SPEC, plan=first)})
    with pytest.raises(InputError, match="another STORM plan") as refusal:
        check_table(table, replace(SPEC, plan=second), GRAPH)
    assert '"rows": [0, 1,' in str(refusal.value.got)


def test_another_export_of_the_same_model_is_refused(table):
    with pytest.raises(InputError, match="another export of the same model"):
        check_table(table, SPEC, "d" * 64)


def test_the_bundled_weights_need_no_option(table):
    spec = replace(SPEC, checkpoint="bundled:vmamba_tiny_s1l8", checkpoint_sha256="f" * 64)
    with pytest.raises(InputError) as refusal:
        check_table(table, spec, GRAPH)
    assert "--checkpoint" not in str(refusal.value)


class TestReading:
    def test_a_table_is_what_was_written(self, table, tmp_path):
        path = tmp_path / "c.json"
        path.write_text(table.to_json())
        assert read_table(path) == table

    def test_what_is_missing_damaged_or_no_table_is_refused(self, table, tmp_path):
        path = tmp_path / "c.json"
        texts = {
            "missing": None,
            "cut": table.to_json()[:300],
            "another file": '{"schema_version": 1}',
            "unknown key": table.to_json().replace('"observer"', '"observers"'),
            "no range": table.to_json().replace('"amax": 1.5', '"amax": 0.0'),
        }
        for text in texts.values():
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
            with pytest.raises(InputError, match="calibration table could not be read") as refusal:
                read_table(path)
            assert str(path) in str(refusal.value)
            assert "stormrt calibrate" in str(refusal.value)
