# SPDX-License-Identifier: Apache-2.0
"""A table holds what the build's own graph does on the images, and survives a kill.

What can go wrong: ranges of another graph than a build lowers, of the graph before smoothing, of
images that only filled a batch up; work done twice; a killed run's halves mixed up.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from stormrt.calibration import collect as collecting
from stormrt.calibration.check import check_table, read_table
from stormrt.calibration.images import choose_images
from stormrt.calibration.table import CalibrationTable
from stormrt.errors import InputError
from stormrt.pipeline import calibrate as module
from stormrt.pipeline.calibrate import CalibrateRequest, RangeOptions, calibrate, work_folder
from stormrt.pipeline.onnx_file import load_onnx
from stormrt.pipeline.predictors import Executor, open_predictor
from stormrt.pipeline.quantize.overflow import fp16_values
from stormrt.pipeline.quantize.policy import linear_nodes, quantised_nodes
from stormrt.pipeline.quantize.smooth import fold_smoothing, smoothing_scales
from stormrt.storm import build_vmamba
from tests.helpers.images import labelled, write_npz
from tests.helpers.seeds import generator
from tests.pipeline import support
from tests.pipeline.support import CLASSES, ROOT, SMALL, digest, environment, relative

SIDE, IMAGES, FOR_SMOOTHING = 48, 14, 5
PLAN = "keep=0.5,stage=2"
MIN_MAX = RangeOptions("min-max")


@pytest.fixture(autouse=True)
def _few_images_for_smoothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMOOTHING_IMAGES", FOR_SMOOTHING)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    images = labelled(generator("calibration data"), (5, 4, 5), (SIDE, SIDE))
    return write_npz(images, tmp_path_factory.mktemp("data") / "data.npz")


def request_of(data: Path, out: Path, **changes) -> CalibrateRequest:
    values = {
        "model": SMALL,
        "data": (data,),
        "out": out,
        "num_classes": CLASSES,
        "storm": PLAN,
        "height": SIDE,
        "width": SIDE,
        "ranges": MIN_MAX,
        **changes,
    }
    return CalibrateRequest(**values)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory) -> tuple[CalibrateRequest, CalibrationTable]:
    """An undisturbed run; what it leaves behind is copied, not used."""
    request = request_of(data, tmp_path_factory.mktemp("made") / "c.json")
    with support.small_variants(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SMOOTHING_IMAGES", FOR_SMOOTHING)
        return request, calibrate(request)


@pytest.fixture
def again(made, tmp_path) -> CalibrateRequest:
    """The same request with a copy of what was kept."""
    request = replace(made[0], out=tmp_path / "c.json")
    shutil.copytree(work_folder(made[0].out), work_folder(request.out))
    return request


def graph_of(request: CalibrateRequest) -> onnx.ModelProto:
    return load_onnx(work_folder(request.out) / "exported.onnx")


def run(model: onnx.ModelProto, names: list[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """Values of a graph, one image at a time, by a session of the tests' own."""
    from stormrt.pipeline.comparison import open_session

    exposed = deepcopy(model)
    inner = [name for name in names if name not in ("images", "logits")]
    exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    session = open_session(exposed.SerializeToString(), "the graph under test")
    wanted = [*inner, "logits"]
    runs = [session.run(wanted, {"images": image[None]}) for image in images]
    found = {n: np.concatenate(v) for n, v in zip(wanted, zip(*runs, strict=True), strict=True)}
    return {**found, "images": images}


def pixels(data: Path) -> np.ndarray:
    chosen = choose_images([data], SIDE, SIDE)
    return np.stack([chosen.load(index) for index in range(len(chosen.images))])


class TestTable:
    def test_it_is_of_the_graph_that_a_build_exports(self, made, tmp_path):
        request, table = made
        spec = table.model
        with open_predictor(spec, Executor("onnxruntime", "fp32"), tmp_path / "work"):
            pass
        assert table.graph_sha256 == digest(tmp_path / "work" / "exported.onnx")
        check_table(table, spec, table.graph_sha256)
        assert (spec.name, spec.height, spec.batch) == (SMALL, SIDE, 1)
        assert table.plan == spec.plan.describe()
        assert table.plan.startswith("stage 2 block")
        assert read_table(request.out) == table

    def test_ranges_are_those_of_the_smoothed_graph_on_all_images(self, made, data):
        request, table = made
        model, images = graph_of(request), pixels(data)
        assert len(images) == len(table.images) == IMAGES
        names = [node.activation for node in linear_nodes(model)]
        assert set(names) < set(table.tensors)
        expected = run(model, ["logits"], images)["logits"]
        scales = {n: np.array(s, np.float32) for n, s in table.smoothing.items()}
        fold_smoothing(model, scales)
        values = run(model, list(table.tensors), images)
        assert relative(values["logits"], expected) < 1e-4, "smoothing changes no output"
        for name, seen in table.tensors.items():
            axes = (0, *range(2, values[name].ndim))
            largest = np.abs(values[name]).max()
            assert seen.amax == pytest.approx(largest, rel=1e-3)
            assert seen.largest == seen.amax
            np.testing.assert_allclose(
                seen.mean, values[name].mean(axes), rtol=1e-2, atol=1e-3 * largest
            )

    def test_of_every_other_value_that_fp16_holds_the_largest_is_in_it(self, made, data):
        request, table = made
        model = graph_of(request)
        assert {*table.tensors, *table.largest} == {*fp16_values(model), "images"}
        assert not set(table.tensors) & set(table.largest)
        fold_smoothing(model, {n: np.array(s, np.float32) for n, s in table.smoothing.items()})
        names = [name for name in table.largest if "SelectiveScan" in name][:3]
        names.append("logits")
        values = run(model, names, pixels(data))
        for name in names:
            assert table.largest[name] == pytest.approx(np.abs(values[name]).max(), rel=1e-3)

    def test_the_inputs_of_residual_additions_have_ranges_too(self, made):
        request, table = made
        added = [
            set(node.input)
            for node in graph_of(request).graph.node
            if node.op_type == "Add" and "layers.2.blocks.0" in node.output[0]
        ]
        assert any(inputs <= set(table.tensors) for inputs in added)

    def test_smoothing_is_by_the_largest_values_of_the_first_images(self, made, data):
        request, table = made
        model = graph_of(request)
        nodes = quantised_nodes(model)
        values = run(model, [node.activation for node in nodes], pixels(data)[:FOR_SMOOTHING])
        largest = {n: np.abs(v).max((0, *range(2, v.ndim))) for n, v in values.items()}
        expected = smoothing_scales(model, nodes, largest, 0.5)
        assert set(table.smoothing) == set(expected)
        assert len(expected) > 5
        for name, scale in expected.items():
            np.testing.assert_allclose(table.smoothing[name], scale, rtol=1e-4)
            exactly = np.array(table.smoothing[name], np.float32)
            assert [float(f"{x:.9g}") for x in exactly] == list(table.smoothing[name])

    def test_without_smoothing_there_is_one_pass_and_the_plain_graph(self, data, again):
        told = []
        request = replace(again, ranges=RangeOptions("min-max", smoothing=False))
        table = calibrate(request, on_image=lambda what, *_: told.append(what))
        assert table.smoothing == {}
        assert set(told) == {"hashing images", "checking images", "observing ranges"}
        values = run(graph_of(request), list(table.tensors), pixels(data))
        for name, seen in table.tensors.items():
            assert seen.amax == pytest.approx(np.abs(values[name]).max(), rel=1e-3)

    def test_any_batch_gives_the_same_ranges(self, made, data, tmp_path):
        """Fourteen images do not fill batches of four."""
        table = calibrate(request_of(data, tmp_path / "c.json", batch=4))
        one_by_one = made[1]
        assert table.model.batch == 4
        assert list(table.tensors) == list(one_by_one.tensors)
        for name, seen in table.tensors.items():
            assert seen.amax == pytest.approx(one_by_one.tensors[name].amax, rel=1e-3)
        check_table(one_by_one, table.model, table.graph_sha256)

    def test_images_and_tools_are_named(self, made, data):
        table = made[1]
        assert table.images == choose_images([data], SIDE, SIDE).images
        assert {"onnxruntime", "torch"} <= {tool.name for tool in table.tools}
        assert table.skipped == ()


class TestGoingOn:
    def test_another_observer_only_reads_what_was_kept(self, made, again, monkeypatch):
        monkeypatch.setattr(collecting, "_open_session", None)  # it would be called
        stages, ranges = [], {}
        for options in (
            RangeOptions("min-max"),
            RangeOptions("percentile"),
            RangeOptions("entropy"),
            RangeOptions("mse"),
        ):
            table = calibrate(
                replace(again, ranges=options), on_stage=lambda *event: stages.append(event[:2])
            )
            assert (table.observer, table.smoothing) == (options.observer, made[1].smoothing)
            assert read_table(again.out) == table
            ranges[options.observer, table.percentile] = [t.amax for t in table.tensors.values()]
        assert set(stages) == {("export", "skipped")}
        assert ("percentile", 99.99) in ranges
        assert len({tuple(r) for r in ranges.values()}) == 4
        most = ranges.pop(("min-max", None))
        for found in ranges.values():
            assert all(amax <= largest for amax, largest in zip(found, most, strict=True))

    def test_fewer_images_are_observed_anew_and_more_go_on(self, made, again):
        told: list[tuple[str, int, int]] = []

        def calibrated(images):
            told.clear()
            return calibrate(
                replace(again, images=images), on_image=lambda *event: told.append(event)
            )

        few = calibrated(9)
        assert ("observing ranges", 0, 9) in told
        assert few.images == made[1].images[:9]
        whole = calibrated(IMAGES)
        first = next(e for e in told if e[0] == "observing ranges")
        assert first == ("observing ranges", 9, IMAGES)
        assert whole == made[1]

    def test_a_killed_run_goes_on_and_gives_the_bytes_of_one_that_never_was(
        self, made, data, again
    ):
        """SIGKILL while the fourth statistics of the second pass are half written."""
        request = again
        for kept in work_folder(request.out).glob("*.npz"):
            kept.unlink()
        program = (
            "import os, signal\n"
            "from pathlib import Path\n"
            "from stormrt.calibration import collect\n"
            "from stormrt.pipeline import calibrate\n"
            "from tests.pipeline import support, test_calibrate\n"
            f"calibrate.SMOOTHING_IMAGES = {FOR_SMOOTHING}\n"
            "collect.collect.__kwdefaults__['save_every_s'] = 0\n"
            "real, written = os.replace, []\n"
            "def replace(source, destination):\n"
            "    if str(destination).endswith('ranges-smoothed.npz'):\n"
            "        written.append(1)\n"
            "        if len(written) == 4:\n"
            "            path = Path(source)\n"
            "            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])\n"
            "            os.kill(os.getpid(), signal.SIGKILL)\n"
            "    real(source, destination)\n"
            "os.replace = replace\n"
            "with support.small_variants():\n"
            f"    calibrate.calibrate(test_calibrate.request_of(Path({str(data)!r}), "
            f"Path({str(request.out)!r})))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == -9, done.stderr
        assert not request.out.exists()
        told, stages = [], []
        table = calibrate(
            request,
            on_stage=lambda *event: stages.append(event[:2]),
            on_image=lambda *event: told.append(event),
        )
        assert stages == [("export", "skipped")]
        channels = [e[1:] for e in told if e[0] == "observing channels"]
        ranges = [e[1:] for e in told if e[0] == "observing ranges"]
        assert channels == [(FOR_SMOOTHING, FOR_SMOOTHING)]
        assert ranges == [(n, IMAGES) for n in range(3, IMAGES + 1)]
        assert table == made[1]
        assert request.out.read_bytes() == made[0].out.read_bytes()
        assert not list(work_folder(request.out).glob(".*.tmp"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"ranges": RangeOptions("mse", 99.0)}, "mse has no percentile"),
            ({"ranges": RangeOptions("percentile", 0.0)}, "out of range"),
            ({"images": 0}, "there must be an image"),
            ({"model": "no_such"}, "unknown model"),
            ({"height": 64}, "never enlarged"),
            ({"batch": 0}, "batch is too small"),
        ],
    )
    def test_bad_requests_are_refused_before_the_model_is_exported(
        self, data, tmp_path, changes, words
    ):
        stages = []
        with pytest.raises(InputError, match=words):
            calibrate(
                request_of(data, tmp_path / "c.json", **changes),
                on_stage=lambda *event: stages.append(event),
            )
        assert stages == []

    def test_an_output_that_is_a_folder_or_lies_in_a_file(self, data, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="--out is a folder"):
            calibrate(request_of(data, tmp_path))
        with pytest.raises(InputError, match="is a file"):
            calibrate(request_of(data, tmp_path / "file" / "c.json"))


def test_the_classes_are_those_of_the_card_beside_the_checkpoint(data, tmp_path):
    """As for evaluation and unlike a build, which is told."""
    from safetensors.torch import save_file

    weights = tmp_path / "w.safetensors"
    save_file(build_vmamba(SMALL, 3).state_dict(), weights)
    card = {"classes": ["a", "b", "c"], "sha256": digest(weights)}
    weights.with_suffix(".json").write_text(json.dumps(card))
    request = request_of(data, tmp_path / "c.json", checkpoint=weights, num_classes=None)
    assert module._resolve(request).num_classes == 3
    assert module._resolve(replace(request, num_classes=7)).num_classes == 7
