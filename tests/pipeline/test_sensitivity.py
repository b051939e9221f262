# SPDX-License-Identifier: Apache-2.0
"""Layers are ranked by what each alone does, and a budget keeps the fewest in float.

What can go wrong: other layers rounded along, so that an error is not its own; a budget that holds
only in the report; numbers of another table taken up after a restart; options that do nothing.
"""

from __future__ import annotations

import json
import re
import sys
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from stormrt.calibration.images import choose_images
from stormrt.calibration.table import CalibrationTable
from stormrt.errors import InputError
from stormrt.pipeline.calibrate import CalibrateRequest, RangeOptions, calibrate, work_folder
from stormrt.pipeline.lower import lower_model
from stormrt.pipeline.onnx_file import load_onnx, save_onnx
from stormrt.pipeline.precision import to_int8
from stormrt.pipeline.quantize.policy import (
    DEFAULT_POLICY,
    QuantizationPolicy,
    linear_nodes,
    quantised_nodes,
    residual_adds,
)
from stormrt.pipeline.schema import SensitivityReport
from stormrt.pipeline.sensitivity import mixed as mixing
from stormrt.pipeline.sensitivity import ranking
from stormrt.pipeline.sensitivity.analyse import analyse
from stormrt.pipeline.sensitivity.bench import PROGRESS_NAME, Subject
from stormrt.pipeline.sensitivity.mixed import mixed_precision
from stormrt.pipeline.sensitivity.options import (
    Budget,
    SensitivityOptions,
    check_options,
    report_path,
)
from stormrt.pipeline.sensitivity.ranking import quantising_only, rank_layers
from stormrt.targets.loading import tomllib
from tests.helpers.images import labelled, write_npz
from tests.helpers.seeds import generator
from tests.pipeline.support import (
    CLASSES,
    SMALL,
    Graphs,
    make_graphs,
    model_spec,
    ops,
    relative,
    run_onnx,
    small_variants,
)
from tests.pipeline.tables import calibrated

IMAGES, SIDE = 5, 32
all_layers = ranking.layers_to_rank
"""The tests put fewer in its place."""
BAD = "layers.1.downsample.1/Conv"


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    with small_variants():
        return make_graphs(model_spec(height=SIDE, width=SIDE))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return generator("ranked").standard_normal((IMAGES, 3, SIDE, SIDE)).astype(np.float32)


@pytest.fixture(scope="module")
def table(graphs, images) -> CalibrationTable:
    """Of the graph with a planted bad range: a fiftieth of what there is."""
    made = calibrated(graphs.exported, images[:1])
    (tensor,) = (n.activation for n in linear_nodes(graphs.exported) if n.name == BAD)
    planted = made.tensors[tensor].model_copy(update={"amax": made.tensors[tensor].amax / 50})
    return made.model_copy(
        update={"tensors": {**made.tensors, tensor: planted}, "model": graphs.spec}
    )


@dataclass(frozen=True)
class Ranked:
    subject: Subject
    report: SensitivityReport


def few_layers(model: onnx.ModelProto, *_: object) -> dict[str, str]:
    """Of each kind some, so that a ranking takes seconds."""
    linear = [n.name for n in quantised_nodes(model)]
    kinds = dict.fromkeys([BAD, *linear[::4], *linear[-3:]], "linear")
    kinds[next(node.name for node in linear_nodes(model) if node.groups > 1)] = "depthwise"
    add, *_ = residual_adds(model, QuantizationPolicy(residuals=True))
    return {**kinds, add.name: "residual"}


@pytest.fixture(scope="module", autouse=True)
def _few_layers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "layers_to_rank", few_layers)
        yield


@pytest.fixture(scope="module")
def ranked(graphs, images, table, tmp_path_factory) -> Ranked:
    folder = tmp_path_factory.mktemp("ranked")
    save_onnx(deepcopy(graphs.exported), folder / "exported.onnx")
    subject = Subject(folder / "exported.onnx", table, images, folder)
    return Ranked(subject, rank_layers(subject, ("depthwise", "residual")))


def outputs(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return np.concatenate([run_onnx(model, image[None]) for image in images])


def as_built(graphs: Graphs, table: CalibrationTable, patterns: tuple[str, ...]) -> onnx.ModelProto:
    model = deepcopy(graphs.exported)
    to_int8(model, table, DEFAULT_POLICY.keeping(patterns))
    lower_model(model, "native")
    return model


class TestRanking:
    def test_a_planted_bad_range_makes_its_layer_the_first(self, ranked):
        worst, second = ranked.report.layers[:2]
        assert worst.layer == BAD
        assert worst.rel_l2 > 2 * second.rel_l2
        errors = [layer.rel_l2 for layer in ranked.report.layers]
        assert errors == sorted(errors, reverse=True)
        assert all(error > 0 for error in errors)

    def test_it_is_of_what_a_build_quantises_and_of_more_where_asked(self, graphs, table):
        model = graphs.exported
        linear = {node.name for node in quantised_nodes(model)}
        assert all_layers(model, table, ()) == dict.fromkeys(linear, "linear")
        depthwise = {node.name for node in linear_nodes(model) if node.groups > 1}
        adds = {add.name for add in residual_adds(model, QuantizationPolicy(residuals=True))}
        expected = {
            **dict.fromkeys(linear, "linear"),
            **dict.fromkeys(depthwise, "depthwise"),
            **dict.fromkeys(adds, "residual"),
        }
        assert len(expected) == len(linear) + len(depthwise) + len(adds)
        assert all_layers(model, table, ("residual", "depthwise")) == expected

    def test_what_overflows_fp16_stays_in_float_and_is_not_ranked(self, graphs, table):
        (tensor,) = (n.activation for n in quantised_nodes(graphs.exported) if n.name == BAD)
        huge = table.tensors[tensor].model_copy(update={"largest": 1e5})
        other = table.model_copy(update={"tensors": {**table.tensors, tensor: huge}})
        assert BAD not in all_layers(graphs.exported, other, ())

    @pytest.mark.parametrize("kind", ["linear", "depthwise", "residual"])
    def test_one_layer_is_rounded_and_no_other(self, graphs, images, table, ranked, kind):
        layer = next(s for s in ranked.report.layers if s.kind == kind)
        model = quantising_only(graphs.exported, table, (layer.layer,))
        (node,) = (n for n in model.graph.node if n.name == layer.layer)
        read = [d.output[0] for d in ops(model, "DequantizeLinear")]
        assert set(node.input) >= set(read)
        assert len(read) == 2
        expected = relative(outputs(model, images), outputs(graphs.native, images))
        assert layer.rel_l2 == pytest.approx(expected, rel=1e-5)

    def test_quantising_nothing_is_the_reference_exactly(self, graphs, images):
        table = calibrated(graphs.exported, images[:1], smooth=False)
        model = quantising_only(graphs.exported, table, ())
        assert not ops(model, "QuantizeLinear")
        assert not ops(model, "DequantizeLinear")
        np.testing.assert_array_equal(outputs(model, images), outputs(graphs.native, images))

    def test_the_graph_that_is_given_stays_as_it_was(self, graphs, table):
        before = graphs.exported.SerializeToString(deterministic=True)
        quantising_only(graphs.exported, table, (BAD,))
        assert graphs.exported.SerializeToString(deterministic=True) == before


class TestGoingOn:
    @pytest.fixture
    def broken_off(self, ranked, tmp_path) -> Subject:
        """A copy of what a run has kept that was killed three layers before its end."""
        kept = json.loads((ranked.subject.work / PROGRESS_NAME).read_text())
        kept["layers"] = dict(list(kept["layers"].items())[:-3])
        (tmp_path / PROGRESS_NAME).write_text(json.dumps(kept))
        return replace(ranked.subject, work=tmp_path)

    @pytest.fixture
    def made(self, monkeypatch) -> list[str]:
        """Layers for which a graph is made from now on."""
        names: list[str] = []

        def counted(model, table, layers):
            names.extend(layers)
            return quantising_only(model, table, layers)

        monkeypatch.setattr(ranking, "quantising_only", counted)
        return names

    def test_a_killed_ranking_measures_only_what_is_missing(self, ranked, broken_off, made):
        report = rank_layers(broken_off, ("depthwise", "residual"))
        assert report == ranked.report
        assert len(made) == len(set(made)) == 3

    def test_nothing_is_kept_after_a_kill_in_a_layer_but_whole_layers(
        self, ranked, tmp_path, monkeypatch
    ):
        started: list[str] = []

        def stopping(model, table, layers):
            if len(started) == 2:
                raise KeyboardInterrupt
            started.extend(layers)
            return quantising_only(model, table, layers)

        monkeypatch.setattr(ranking, "quantising_only", stopping)
        with pytest.raises(KeyboardInterrupt):
            rank_layers(replace(ranked.subject, work=tmp_path))
        kept = json.loads((tmp_path / PROGRESS_NAME).read_text())
        assert list(kept["layers"]) == started
        assert [path.name for path in tmp_path.iterdir()] == [PROGRESS_NAME]

    @pytest.mark.parametrize("change", ["table", "images", "damaged"])
    def test_numbers_of_something_else_are_not_taken_up(self, broken_off, change, monkeypatch):
        class FirstLayerError(Exception):
            pass

        def refusing(model, table, layers):
            raise FirstLayerError(*layers)

        monkeypatch.setattr(ranking, "quantising_only", refusing)
        with pytest.raises(FirstLayerError) as unchanged:
            rank_layers(broken_off)
        subject = broken_off
        if change == "table":
            subject = replace(subject, table=subject.table.model_copy(update={"percentile": 9.0}))
        elif change == "images":
            subject = replace(subject, images=subject.images[:-1])
        else:
            (subject.work / PROGRESS_NAME).write_text('{"key": ')
        with pytest.raises(FirstLayerError) as changed:
            rank_layers(subject)
        assert changed.value.args == (BAD,)  # the first of few_layers
        assert unchanged.value.args != (BAD,)


class TestBudget:
    def test_one_bad_layer_is_the_only_one_kept(self, graphs, images, table, ranked):
        reference = outputs(graphs.native, images)
        without = relative(outputs(as_built(graphs, table, (f"^{BAD}$",)), images), reference)
        plain = relative(outputs(as_built(graphs, table, ()), images), reference)
        budget = (without + plain) / 2
        mixed = mixed_precision(ranked.report, ranked.subject, Budget(budget)).mixed
        assert mixed is not None and mixed.met  # noqa: PT018  for the type checker
        assert mixed.layers == (BAD,)
        assert [re.search(p, BAD) is not None for p in mixed.keep_float] == [True]
        found = {trial.kept: trial for trial in mixed.trials}
        assert (found[0].within, found[1].within) == (False, True)
        assert found[1].rel_l2 == pytest.approx(without, rel=1e-5)

    def test_a_tighter_budget_keeps_more_and_holds_when_it_is_measured_again(
        self, graphs, images, table, ranked
    ):
        reference = outputs(graphs.native, images)
        linear = [s.layer for s in ranked.report.layers if s.kind == "linear"]
        every = tuple(f"^{re.escape(name)}$" for name in linear)
        one = relative(outputs(as_built(graphs, table, (f"^{BAD}$",)), images), reference)
        floor = relative(outputs(as_built(graphs, table, every), images), reference)
        budget = (one + floor) / 2
        mixed = mixed_precision(ranked.report, ranked.subject, Budget(budget)).mixed
        assert mixed is not None and mixed.met  # noqa: PT018  for the type checker
        assert mixed.layers == tuple(linear[: len(mixed.layers)])
        assert 1 < len(mixed.layers) < len(linear)
        again = relative(outputs(as_built(graphs, table, mixed.keep_float), images), reference)
        assert again <= budget
        fewer = as_built(graphs, table, mixed.keep_float[:-1])
        assert relative(outputs(fewer, images), reference) > budget
        assert len(mixed.trials) <= 2 + len(linear).bit_length()

    def test_a_loose_budget_keeps_nothing_by_one_trial(self, ranked):
        mixed = mixed_precision(ranked.report, ranked.subject, Budget(10.0)).mixed
        assert mixed is not None and mixed.met  # noqa: PT018  for the type checker
        assert (mixed.layers, mixed.keep_float) == ((), ())
        assert [(t.kept, t.within) for t in mixed.trials] == [(0, True)]

    def test_less_than_fp16_loses_is_said_to_be_out_of_reach(self, ranked):
        mixed = mixed_precision(ranked.report, ranked.subject, Budget(1e-9)).mixed
        assert mixed is not None and not mixed.met  # noqa: PT018  for the type checker
        assert mixed.keep_float == ()
        kept = [trial.kept for trial in mixed.trials]
        assert max(kept) == len([s for s in ranked.report.layers if s.kind == "linear"])
        assert not any(trial.within for trial in mixed.trials)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images of as many classes as the model has outputs."""
    names = tuple(f"class {i}" for i in range(CLASSES))
    pictures = labelled(generator("labelled"), (2,) * CLASSES, (SIDE, SIDE), names)
    return write_npz(pictures, tmp_path_factory.mktemp("labelled") / "data.npz")


class TestWithCalibration:
    def test_the_report_is_written_beside_the_table_with_top1(self, data, tmp_path, monkeypatch):
        request = CalibrateRequest(
            SMALL, (data,), tmp_path / "c.json", num_classes=CLASSES, storm="keep=1,stage=2",
            height=SIDE, width=SIDE, ranges=RangeOptions("min-max"),
        )  # fmt: skip
        monkeypatch.setattr(ranking, "layers_to_rank", lambda *_: {BAD: "linear"})
        options = SensitivityOptions(4, labelled=data, budget=Budget(most_top1_loss=0.9))
        table = calibrate(request)
        report = analyse(request, table, options)
        assert report_path(request.out) == tmp_path / "c.sensitivity.json"
        assert SensitivityReport.read(tmp_path / "c.sensitivity.json") == report
        assert (report.images, report.labelled_images) == (4, 4)
        assert report.graph_sha256 == table.graph_sha256
        mixed = report.mixed
        assert mixed is not None and mixed.met  # noqa: PT018  for the type checker
        assert mixed.labelled_images == 2 * CLASSES

        model = load_onnx(work_folder(request.out) / "exported.onnx")
        native = deepcopy(model)
        lower_model(native, "native")
        with np.load(data) as file:
            labels = file["test_labels"]
        chosen = choose_images([data], SIDE, SIDE)
        by_name = {image.name: chosen.load(i) for i, image in enumerate(chosen.images)}
        # Names count the images of the split.
        pixels = np.stack([by_name[f"test/{i}"] for i in range(len(labels))])
        right = float((outputs(native, pixels).argmax(1) == labels).mean())
        assert mixed.top1 == pytest.approx(right)
        to_int8(model, table)
        lower_model(model, "native")
        right = float((outputs(model, pixels).argmax(1) == labels).mean())
        assert mixed.trials[0].top1 == pytest.approx(right)

    def test_labelled_images_of_other_classes_are_refused(self, ranked, tmp_path):
        other = write_npz(labelled(generator("other")), tmp_path / "other.npz")
        with pytest.raises(InputError, match="3 classes and the model has 7"):
            rank_layers(replace(ranked.subject, work=tmp_path, labelled=other))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (SensitivityOptions(images=0), "must be an image"),
            (SensitivityOptions(budget=Budget(0.0)), "cannot be kept"),
            (SensitivityOptions(budget=Budget(-1.0)), "cannot be kept"),
            (SensitivityOptions(budget=Budget(float("nan"))), "cannot be kept"),
            (SensitivityOptions(budget=Budget(0.1, 0.1)), "two budgets"),
            (SensitivityOptions(budget=Budget(most_top1_loss=-0.1)), "no share"),
            (SensitivityOptions(budget=Budget(most_top1_loss=1.0)), "no share"),
            (SensitivityOptions(budget=Budget(most_top1_loss=float("nan"))), "no share"),
            (SensitivityOptions(budget=Budget(most_top1_loss=0.1)), "needs labelled images"),
            (SensitivityOptions(labelled=Path("/nowhere.npz")), "nowhere"),
        ],
    )
    def test_options_that_make_no_sense(self, options, message):
        with pytest.raises(InputError, match=message):
            check_options(options)


class TestCommandLine:
    @pytest.fixture
    def cli(self, monkeypatch, capfd, tmp_path, data):
        """`stormrt calibrate` of the small model, in this process: exit code, stdout, stderr."""
        monkeypatch.setenv("NO_COLOR", "1")

        def run(*options: object) -> tuple[object, str, str]:
            from stormrt.pipeline.cli.main import main

            given = ["calibrate", "--model", SMALL, "--data", data, "--out", tmp_path / "c.json"]
            given += ["--size", SIDE, "--classes", CLASSES, "--observer", "min-max"]
            given += ["--storm", "keep=1,stage=2"]
            monkeypatch.setattr(sys, "argv", ["stormrt", *map(str, [*given, *options])])
            with pytest.raises(SystemExit) as stopped:
                main()
            return stopped.value.code, *capfd.readouterr()

        return run

    @pytest.mark.parametrize(
        "option",
        [
            ("--most-error", 0.1),
            ("--most-top1-loss", 0.1),
            ("--labelled", "x.npz"),
            ("--also", "residual"),
            ("--sensitivity-images", 3),
        ],
    )
    def test_options_of_a_ranking_without_one_are_refused_at_once(self, cli, tmp_path, option):
        code, _, err = cli(*option)
        assert code == 2
        assert err.count("error: ") == 1
        assert f"{option[0]} is of a ranking" in err
        assert "add --sensitivity" in err
        assert not list(tmp_path.iterdir())

    def test_an_impossible_budget_is_refused_before_calibrating(self, cli, tmp_path):
        code, _, err = cli("--sensitivity", "--most-error", -1)
        assert code == 2
        assert "the budget of the error cannot be kept" in err
        assert not list(tmp_path.iterdir())

    def test_a_person_reads_a_table_and_lines_for_a_recipe(self, cli, tmp_path, monkeypatch):
        def planted(model, *_):
            return {BAD: "linear", quantised_nodes(model)[0].name: "linear"}

        monkeypatch.setattr(ranking, "layers_to_rank", planted)
        answers = {0: False, 1: True, 2: True}
        monkeypatch.setattr(mixing, "_within", lambda seen, *_: answers[seen.kept])
        options = ("--sensitivity", "--sensitivity-images", 2, "--most-error", 0.5)
        code, out, err = cli(*options)
        assert code == 0, err
        report = SensitivityReport.read(tmp_path / "c.sensitivity.json")
        assert report.mixed is not None
        (pattern,) = report.mixed.keep_float
        recipe = out[out.index("[quantization]") :].split("\n\n")[0]
        assert tomllib.loads(recipe) == {"quantization": {"keep_float": [pattern]}}
        assert out.index(report.layers[0].layer) < out.index(report.layers[1].layer)
        code, out, err = cli(*options, "--json")
        assert code == 0, err
        assert json.loads(out)["sensitivity"] == report.to_json_value()
