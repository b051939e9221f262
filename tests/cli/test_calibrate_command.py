# SPDX-License-Identifier: Apache-2.0
"""`stormrt calibrate`: what it says, and one clear message for everything that is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stormrt.calibration.check import read_table
from stormrt.pipeline.calibrate import CalibrateRequest, calibrate
from stormrt.storm import build_vmamba
from tests.helpers.images import encode, labelled, write_folder, write_npz
from tests.helpers.seeds import generator
from tests.pipeline.support import CLASSES, SMALL, small_variants

SIDE, IMAGES = 32, 24
DENSE = "keep=1,stage=2"
"""The small model's first stage has no block to reduce before."""


@pytest.fixture(scope="module")
def images():
    return labelled(generator("calibration images"), (9, 8, 7), (SIDE, SIDE))


@pytest.fixture(scope="module")
def npz(images, tmp_path_factory) -> Path:
    return write_npz(images, tmp_path_factory.mktemp("data") / "data.npz")


@pytest.fixture(scope="module")
def _kept(npz, tmp_path_factory) -> Path:
    """A work folder that a run has left."""
    folder = tmp_path_factory.mktemp("kept")
    with small_variants():
        calibrate(
            CalibrateRequest(
                SMALL, (npz,), folder / "c.json", num_classes=CLASSES, storm=DENSE,
                height=SIDE, width=SIDE, work=folder / "work",
            )
        )  # fmt: skip
    return folder / "work"


@pytest.fixture
def work(_kept, tmp_path) -> Path:
    return shutil.copytree(_kept, tmp_path / "work")


@pytest.fixture
def options(npz, tmp_path):
    """The arguments of a run; None leaves an option out, a list repeats it."""

    def make(*data, **changes) -> list[object]:
        values = {
            "model": SMALL,
            "size": SIDE,
            "classes": CLASSES,
            "storm": DENSE,
            "data": data or (npz,),
            "out": tmp_path / "c.json",
            "observer": "min-max",
            **changes,
        }
        pairs = []
        for name, value in values.items():
            for each in value if isinstance(value, tuple) else (value,):
                if each is not None:
                    pairs += [f"--{name.replace('_', '-')}", each]
        return ["calibrate", *pairs]

    return make


def refused(done, *words: str) -> None:
    """One message, with these words in it, and no traceback."""
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert done.err.count("error: ") == 1, done.err
    for word in words:
        assert word in done.err, f"{word!r} is not in: {done.err}"


class TestResult:
    def test_it_says_what_was_made_and_where_the_rest_is(self, cli, options, work, tmp_path):
        done = cli(*options(work=work, observer=None))
        assert done.code == 0, done.err
        table = read_table(tmp_path / "c.json")
        assert f"c.json: ranges of {len(table.tensors)} tensors by mse" in done.out
        assert f"{len(table.smoothing)} of them smoothed, from {IMAGES} images" in done.out
        assert str(work) in done.out
        assert "of FP16's 65504; no node stays in FP32 for it" in done.out
        assert "export     skipped" in done.err
        assert f"there were only {IMAGES} images to use; 512 or more are better" in done.err
        assert "the weights are random (seed 0)" in done.err
        assert "observing" not in done.err, "a bar is for terminals"

    def test_json_has_what_a_program_wants(self, cli, options, work, tmp_path):
        done = cli(*options(work=work, observer="percentile", images=10), "--json")
        assert done.code == 0, done.err
        found, table = json.loads(done.out), read_table(tmp_path / "c.json")
        assert found == {
            "file": str(tmp_path / "c.json"),
            "graph_sha256": table.graph_sha256,
            "model": SMALL,
            "plan": table.plan,
            "observer": "percentile",
            "percentile": 99.99,
            "tensors": len(table.tensors),
            "smoothed": len(table.smoothing),
            "images": 10,
            "skipped": [],
            "fp16": found["fp16"],
        }
        fp16 = found["fp16"]
        assert fp16["values"] == len(table.tensors) + len(table.largest)
        seen = {n: t.largest for n, t in table.tensors.items()} | table.largest
        assert fp16["tensor"] in seen
        assert fp16["largest"] >= max(seen.values())
        assert fp16["stay_in_fp32"] == []
        assert found["smoothed"] > 5
        assert "there were only" not in done.err

    def test_another_observer_and_no_smoothing_are_options(self, cli, options, work, tmp_path):
        done = cli(*options(work=work, observer="percentile", percentile=99), "--no-smoothing")
        assert done.code == 0, done.err
        table = read_table(tmp_path / "c.json")
        assert (table.observer, table.percentile, table.smoothing) == ("percentile", 99.0, {})
        assert "by percentile 99, 0 of them smoothed" in done.out

    def test_photographs_may_be_listed(self, cli, options, images, work, tmp_path):
        paths = []
        for index, encoded in enumerate(images.encoded[:3]):
            paths.append(tmp_path / f"{index}.png")
            paths[-1].write_bytes(encoded)
        done = cli(*options(*paths, work=work))
        assert done.code == 0, done.err
        table = read_table(tmp_path / "c.json")
        assert {image.name for image in table.images} == set(map(str, paths))

    def test_skipped_images_are_named(self, cli, options, images, work, tmp_path):
        folder = write_folder(images.replaced({3: b"no image"}), tmp_path / "data")
        done = cli(*options(folder, work=work))
        assert done.code == 0, done.err
        assert "skipped ant/0003.png: " in done.err
        (skipped,) = read_table(tmp_path / "c.json").skipped
        assert skipped.startswith("ant/0003.png: ")


class TestRefusals:
    def test_an_empty_folder(self, cli, options, tmp_path):
        (tmp_path / "empty").mkdir()
        refused(cli(*options(tmp_path / "empty")), "holds no photographs", "empty")

    def test_more_than_five_percent_of_corrupt_images(self, cli, options, images, tmp_path):
        data = write_npz(images.replaced({1: b"no", 2: b"image"}), tmp_path / "d.npz")
        refused(cli(*options(data)), "more than 5% of the 24 images", "test/1: ", "test/2: ")

    def test_images_that_are_all_black(self, cli, options, tmp_path):
        for index in range(3):
            pixels = np.zeros((SIDE + index, SIDE, 3), np.uint8)
            (tmp_path / f"{index}.png").write_bytes(encode(pixels))
        refused(cli(*options(tmp_path)), "no contrast", "3 images, each of one colour")

    def test_images_that_are_too_small(self, cli, options):
        done = cli(*options(size=48))
        refused(done, "smaller than the model's input", "never enlarged", "--size 32")
        assert "export" not in done.err

    def test_weights_that_make_activations_infinite(self, cli, options, tmp_path):
        state = build_vmamba(SMALL, CLASSES).state_dict()
        state["layers.2.blocks.1.mlp.fc1.bias"][3] = torch.inf
        torch.save(state, tmp_path / "inf.pth")
        done = cli(*options(checkpoint=tmp_path / "inf.pth"))
        refused(done, "not finite", "layers.2.blocks.1.mlp.act/", "channel 3", "image test/")
        assert not (tmp_path / "c.json").exists()

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"data": ("/no/such",)}, "do not exist"),
            ({"images": 0}, "--images"),
            ({"percentile": 99}, "min-max has no percentile"),
            ({"observer": "percentile", "percentile": 101}, "out of range"),
            ({"split": "val"}, "val_images"),
            ({"out": "/proc/c.json"}, "could not write"),
            ({"work": "/proc/stormrt"}, "could not write"),
        ],
    )
    def test_bad_options(self, cli, options, changes, words):
        refused(cli(*options(**changes)), words)

    def test_an_unknown_observer_is_refused_with_those_that_there_are(self, cli, options):
        done = cli(*options(observer="median"))
        assert done.code == 2
        assert "entropy" in done.err

    def test_errors_are_json_where_that_is_asked_for(self, cli, options):
        done = cli(*options("/no/such"), "--json")
        assert done.code == 2
        assert json.loads(done.out)["error"]["what"] == "the data do not exist"
