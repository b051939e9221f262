# SPDX-License-Identifier: Apache-2.0
"""The fewest of the worst layers that have to stay in float for a budget."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stormrt.calibration.table import CalibrationTable
from stormrt.pipeline.files import sha256_text
from stormrt.pipeline.schema import MixedPrecision, MixedPrecisionTrial, SensitivityReport
from stormrt.pipeline.sensitivity.bench import Bench, Subject, copied
from stormrt.pipeline.sensitivity.options import Budget

if TYPE_CHECKING:
    import onnx

    from stormrt.calibration.images import ImageEvent

MOST_LABELLED = 2000
"""Labelled images that a trial is judged on, spread evenly over all, as for the gate."""

_TRYING = "trying budgets"


def mixed_precision(
    report: SensitivityReport,
    subject: Subject,
    budget: Budget,
    *,
    on_step: ImageEvent = lambda *_: None,
) -> SensitivityReport:
    """Find how many of the worst layers have to stay in float for a budget.

    A trial is the graph that a build lowers: its float part is FP16. By bisection, which takes it
    that more layers in float never lose more; the answer itself is always measured.

    Args:
        report: Of ``rank_layers``, of the same subject.
        subject: What was ranked.
        budget: What the whole graph may lose.
        on_step: Told of each trial.

    Returns:
        The report with ``mixed``.

    Raises:
        InputError: As ``rank_layers``.
    """
    bench = Bench(subject)
    order = [layer.layer for layer in report.layers if layer.kind == "linear"]
    trials: list[MixedPrecisionTrial] = []
    most = 1 + len(order).bit_length()
    fp32_top1 = bench.fp32_top1(MOST_LABELLED)

    def holds(kept: int) -> bool:
        on_step(_TRYING, len(trials), most)
        names = order[:kept]
        key = sha256_text(json.dumps(sorted(names)))
        if key not in bench.kept.trials:
            graph = _whole(bench.model, subject.table, names)
            numbers = bench.measured(graph, MOST_LABELLED)
            bench.kept.trials[key] = MixedPrecisionTrial(kept=kept, within=False, **numbers)
            bench.save()
        seen = bench.kept.trials[key]
        within = _within(seen, budget, fp32_top1)
        trials.append(seen.model_copy(update={"kept": kept, "within": within}))
        return within

    # The fewest that hold are among low..high; high stands for none before it was tried.
    low, high = 0, 0 if holds(0) else len(order) + 1
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    met = high <= len(order)
    on_step(_TRYING, most, most)
    kept = tuple(order[:high]) if met else ()
    mixed = MixedPrecision(
        most_error=budget.most_error,
        most_top1_loss=budget.most_top1_loss,
        met=met,
        layers=kept,
        keep_float=tuple(f"^{re.escape(name)}$" for name in kept),
        trials=tuple(trials),
        top1=fp32_top1,
        labelled_images=bench.labelled(MOST_LABELLED),
    )
    return report.model_copy(update={"mixed": mixed})


def _whole(
    model: onnx.ModelProto, table: CalibrationTable, in_float: Sequence[str]
) -> onnx.ModelProto:
    """The native INT8 graph of a build whose recipe keeps these nodes in float."""
    from stormrt.pipeline.lower import lower_model
    from stormrt.pipeline.precision import to_int8
    from stormrt.pipeline.quantize.policy import DEFAULT_POLICY

    copy = copied(model)
    to_int8(copy, table, DEFAULT_POLICY.keeping_nodes(in_float, "INT8 hurts it"))
    lower_model(copy, "native")
    return copy


def _within(seen: MixedPrecisionTrial, budget: Budget, fp32_top1: float | None) -> bool:
    if budget.most_top1_loss is not None:
        assert seen.top1 is not None and fp32_top1 is not None  # noqa: PT018  one condition
        # Shares of the same number of images: what differs less than one image is equal.
        return fp32_top1 - seen.top1 <= budget.most_top1_loss + 1e-9
    assert budget.most_error is not None  # a budget has one of the two
    return seen.rel_l2 <= budget.most_error
