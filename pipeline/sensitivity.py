# SPDX-License-Identifier: Apache-2.0
"""Which layers INT8 hurts, and the fewest that have to stay in float.

    exported graph, table -> each layer alone in INT8, all else FP32 -> layers, the worst first
    ... and a budget      -> the worst k in float, as a build makes it, by bisection over k

Only whole outputs are compared: what rounding does to a layer's own tensor (``gate.local_errors``)
tells little of what the layers behind it make of that. Where a STORM plan chooses other lines than
FP32 does, this is in the error, too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from stormrt.calibration.images import choose_images
from stormrt.calibration.table import CalibrationTable
from stormrt.errors import InputError
from stormrt.pipeline.build import tools
from stormrt.pipeline.calibrate import CalibrateRequest, work_folder
from stormrt.pipeline.datasets import open_dataset, spread
from stormrt.pipeline.evaluation import match_classes, top1_of
from stormrt.pipeline.files import code_digest, folder_lock, sha256_file, sha256_text, write_text
from stormrt.pipeline.graph_stages import EXPORTED_NAME, version, workstation_packages
from stormrt.pipeline.metrics import compare
from stormrt.pipeline.model_spec import card_of
from stormrt.pipeline.predictors import Predict, onnxruntime_predictor
from stormrt.pipeline.schema import (
    LayerSensitivity,
    MixedPrecision,
    MixedPrecisionTrial,
    SensitivityProgress,
    SensitivityReport,
)

if TYPE_CHECKING:
    import onnx

    from stormrt.calibration.images import ImageEvent

DEFAULT_IMAGES = 32
"""Calibration images that a layer is judged on."""
MOST_LABELLED = 2000
"""Labelled images that a trial is judged on, spread evenly over all, as for the gate."""
PROGRESS_NAME = "sensitivity.json"

_TRIAL_NAME = "sensitivity-trial.onnx"
_RANKING, _TRYING = "ranking layers", "trying budgets"

Kind = Literal["linear", "depthwise", "residual"]
Extra = Literal["depthwise", "residual"]
"""Layers that the default policy leaves in float, and that can be ranked all the same."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the whole INT8 graph may lose; one of the two."""

    most_error: float | None = None
    """Relative L2 of the logits against FP32."""
    most_top1_loss: float | None = None
    """Top-1, 0 to 1, below FP32's."""


@dataclass(frozen=True, slots=True)
class SensitivityOptions:
    """How layers are ranked, and which budget is looked for."""

    images: int = DEFAULT_IMAGES
    """Calibration images; with labelled ones, as many of those."""
    extra: tuple[Extra, ...] = ()
    labelled: Path | None = None
    """A folder or an npz."""
    budget: Budget | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is ranked, and on what."""

    graph: Path
    """Exported, FP32."""
    table: CalibrationTable
    """Of that graph."""
    images: NDArray[np.float32]
    """[n, 3, H, W], preprocessed."""
    work: Path
    """Folder that keeps what was measured."""
    labelled: Path | None = None
    """Labelled images."""


def check_options(options: SensitivityOptions) -> None:
    """Refuse what makes no sense, before the slow part.

    Raises:
        InputError: No images; a budget that is no number above 0 (no share of 1, for top-1); both
            budgets; a budget of top-1 without labelled images; labelled images that are none.
    """
    if options.images < 1:
        raise InputError(
            "there must be an image to rank layers on",
            where="--sensitivity-images",
            got=str(options.images),
        )
    if options.labelled is not None:
        open_dataset(options.labelled, None)
    budget = options.budget
    if budget is None:
        return
    error, loss = budget.most_error, budget.most_top1_loss
    if error is not None and loss is not None:
        raise InputError(
            "two budgets were given",
            where="--most-error, --most-top1-loss",
            fix="give the one that counts: --most-top1-loss where there are labelled images",
        )
    if error is not None and not (math.isfinite(error) and error > 0):
        raise InputError(
            "the budget of the error cannot be kept",
            where="--most-error",
            got=str(error),
            expected="a relative L2 above 0, such as 0.05",
        )
    if loss is not None and not 0 <= loss < 1:
        raise InputError(
            "the budget of top-1 is no share",
            where="--most-top1-loss",
            got=str(loss),
            expected="0 or more, below 1: 0.005 is half a point",
        )
    if loss is not None and options.labelled is None:
        raise InputError(
            "top-1 needs labelled images",
            where="--most-top1-loss",
            fix="add --labelled DATA, or take --most-error",
        )


def report_path(out: Path) -> Path:
    """The report's file beside a table's."""
    return out.with_name(out.name.removesuffix(".json") + ".sensitivity.json")


def analyse(
    request: CalibrateRequest,
    table: CalibrationTable,
    options: SensitivityOptions,
    *,
    on_step: ImageEvent = lambda *_: None,
) -> SensitivityReport:
    """Rank the layers behind a table that ``calibrate`` has just made, and write the report.

    Args:
        request: What ``calibrate`` was asked for.
        table: What it made.
        options: How layers are ranked.
        on_step: Told of each layer and trial.

    Raises:
        InputError: Bad options; images that are not the table's; labelled images of other classes.
        EnvironmentMissingError: A package is missing.
    """
    check_options(options)
    work, spec = request.work or work_folder(request.out), table.model
    with folder_lock(work), workstation_packages():
        # A larger choice begins with a smaller one; unusable images were counted by ``calibrate``.
        wanted = min(options.images, len(table.images))
        chosen = choose_images(
            request.data,
            spec.height,
            spec.width,
            wanted=wanted,
            split=request.split,
            most_unusable=1.0,
            on_image=on_step,
        )
        if chosen.images != table.images[:wanted]:
            raise InputError(
                "the images have changed since the table was made",
                where=chosen.where,
                fix="run `stormrt calibrate` again",
            )
        pixels = np.stack([chosen.load(index) for index in range(wanted)])
        subject = Subject(work / EXPORTED_NAME, table, pixels, work, options.labelled)
        report = rank_layers(subject, options.extra, on_step=on_step)
        if options.budget is not None:
            report = mixed_precision(report, subject, options.budget, on_step=on_step)
    write_text(report_path(request.out), report.to_json())
    return report


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
    copy = _copied(model)
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
    bench, count = _Bench(subject), len(subject.images)
    layers = _layers(bench.model, subject.table, extra)
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
    bench = _Bench(subject)
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


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _whole(
    model: onnx.ModelProto, table: CalibrationTable, in_float: Sequence[str]
) -> onnx.ModelProto:
    """The native INT8 graph of a build whose recipe keeps these nodes in float."""
    from stormrt.pipeline.lower import lower_model
    from stormrt.pipeline.precision import to_int8
    from stormrt.pipeline.quantize.policy import DEFAULT_POLICY

    copy = _copied(model)
    to_int8(copy, table, DEFAULT_POLICY.keeping_nodes(in_float, "INT8 hurts it"))
    lower_model(copy, "native")
    return copy


def _layers(
    model: onnx.ModelProto, table: CalibrationTable, extra: Collection[Extra]
) -> dict[str, Kind]:
    """What is ranked, in the order of the graph, by name."""
    from stormrt.pipeline.quantize.overflow import fp32_islands, overflow_risks
    from stormrt.pipeline.quantize.policy import (
        DEFAULT_POLICY,
        linear_nodes,
        quantised_nodes,
        residual_adds,
    )

    largest = {name: found.largest for name, found in table.tensors.items()}
    islands = fp32_islands(overflow_risks(model, largest))
    kinds: dict[str, Kind] = {node.name: "linear" for node in quantised_nodes(model)}
    if "depthwise" in extra:
        more = [node.name for node in linear_nodes(model) if node.groups > 1]
        kinds = {**dict.fromkeys(more, "depthwise"), **kinds}
    if "residual" in extra:
        for add in residual_adds(model, replace(DEFAULT_POLICY, residuals=True)):
            kinds[add.name] = "residual"
    names = [node.name for node in model.graph.node if node.name not in islands]
    return {name: kinds[name] for name in names if name in kinds}


def _within(seen: MixedPrecisionTrial, budget: Budget, fp32_top1: float | None) -> bool:
    if budget.most_top1_loss is not None:
        assert seen.top1 is not None and fp32_top1 is not None  # noqa: PT018  one condition
        # Shares of the same number of images: what differs less than one image is equal.
        return fp32_top1 - seen.top1 <= budget.most_top1_loss + 1e-9
    assert budget.most_error is not None  # a budget has one of the two
    return seen.rel_l2 <= budget.most_error


class _Numbers(TypedDict):
    rel_l2: float
    argmax_agreement: float
    top1: float | None


class _Bench:
    """Runs graphs on the subject's images, and keeps what was measured in its folder."""

    def __init__(self, subject: Subject) -> None:
        from stormrt.pipeline.onnx_file import load_onnx

        self._subject, self._spec = subject, subject.table.model
        self.model = load_onnx(subject.graph)
        self._file = subject.work / PROGRESS_NAME
        facts = [
            sha256_text(subject.table.to_json()),
            sha256_file(subject.graph),
            hashlib.sha256(subject.images.tobytes()).hexdigest(),
            self._labels(),
            version("onnxruntime"),
            code_digest(),
        ]
        key = sha256_text(json.dumps(facts))
        self.kept = self._taken_up(key)
        self._logits: NDArray[np.float32] | None = None
        self._fp32: Predict | None = None

    def _taken_up(self, key: str) -> SensitivityProgress:
        try:
            kept = SensitivityProgress.read(self._file)
        except InputError:  # missing, or of another version
            return SensitivityProgress(key=key)
        return kept if kept.key == key else SensitivityProgress(key=key)

    def save(self) -> None:
        """Write what was measured."""
        write_text(self._file, self.kept.to_json())

    def _labels(self) -> str | None:
        """Stands for the labelled images that can be looked at."""
        if self._subject.labelled is None:
            return None
        data = open_dataset(self._subject.labelled, None)
        match_classes(data, self._spec.num_classes, card_of(self._spec))
        digest = hashlib.sha256()
        for index in range(len(data)):
            source = data.source(index)
            content = source if isinstance(source, bytes) else source.read_bytes()
            digest.update(f"{data.label(index)}:{len(content)}:".encode() + content)
        return digest.hexdigest()

    def labelled(self, limit: int) -> int:
        """How many labelled images a top-1 is of."""
        if self._subject.labelled is None:
            return 0
        return len(spread(len(open_dataset(self._subject.labelled, None)), limit))

    def fp32_top1(self, limit: int) -> float | None:
        """The reference's, on at most this many labelled images."""
        if self._subject.labelled is None:
            return None
        if str(limit) not in self.kept.top1:
            self.kept.top1[str(limit)] = self._top1(self._reference(), limit)
            self.save()
        return self.kept.top1[str(limit)]

    def measured(self, graph: onnx.ModelProto, labelled: int) -> _Numbers:
        """Distance of a native graph from FP32, and its top-1."""
        if self._logits is None:
            self._logits = self._run(self._reference())
            if not np.isfinite(self._logits).all():
                raise InputError(
                    "the model's FP32 outputs are not finite",
                    where=str(self._subject.graph),
                    fix="check the checkpoint",
                )
        predict = self._open(graph)
        metrics = compare(self._run(predict), self._logits)
        top1 = None
        if self._subject.labelled is not None:
            # An output that is not finite names no class.
            top1 = self._top1(predict, labelled) if math.isfinite(metrics.rel_l2) else 0.0
        return {
            "rel_l2": metrics.rel_l2,
            "argmax_agreement": metrics.argmax_agreement,
            "top1": top1,
        }

    def _reference(self) -> Predict:
        if self._fp32 is None:
            from stormrt.pipeline.lower import lower_model

            copy = _copied(self.model)
            lower_model(copy, "native")
            self._fp32 = self._open(copy)
        return self._fp32

    def _open(self, graph: onnx.ModelProto) -> Predict:
        from stormrt.pipeline.onnx_file import save_onnx

        path = self._subject.work / _TRIAL_NAME
        save_onnx(graph, path)
        try:
            return onnxruntime_predictor(path, self._spec)
        finally:
            path.unlink()

    def _run(self, predict: Predict) -> NDArray[np.float32]:
        images, batch = self._subject.images, self._spec.batch
        parts = [images[start : start + batch] for start in range(0, len(images), batch)]
        return np.concatenate([predict(part) for part in parts])

    def _top1(self, predict: Predict, limit: int) -> float:
        labelled = self._subject.labelled
        assert labelled is not None  # the callers' condition
        return top1_of(predict, self._spec, labelled, limit)[0]
