# SPDX-License-Identifier: Apache-2.0
"""`stormrt storm show`: a picture of what a plan keeps."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.pipeline.support import CLASSES, SMALL

MODEL = ["--model", SMALL, "--classes", CLASSES, "--size", "64x48"]


def test_a_picture_is_written_and_every_reduction_is_told(cli, photographs, tmp_path):
    out = tmp_path / "kept.png"
    photo = photographs / "coffee.png"
    storm = "keep=0.5,stage=2,block=1,unit=window,mode=merge,restore=end"
    done = cli("storm", "show", photo, *MODEL, "--storm", storm, "--out", out)
    assert done.code == 0
    assert "stage 2 block 1: 3x2 of 4x3 (50%): windows by feature_norm, merged, back" in done.out
    assert str(out) in done.out.replace("\n", "")
    assert "the weights are random" in done.err
    with Image.open(out) as picture:
        assert picture.format == "PNG"


def test_without_out_the_picture_is_named_after_the_photograph(
    cli, photographs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = cli(
        "storm", "show", photographs / "coffee.png", *MODEL, "--storm", "keep=0.5,stage=2", "--json"
    )
    assert done.code == 0
    answer = json.loads(done.out)
    assert answer["file"] == "coffee-storm.png"
    assert answer["reductions"][0]["stage"] == 2
    assert 0.3 < answer["reductions"][0]["leaves"] < 0.7
    assert [p.name for p in tmp_path.iterdir()] == ["coffee-storm.png"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--storm", "keep=1,stage=2"], "nothing to draw"),
        (["--storm", "keep=0.5,unit=token"], "unknown unit 'token'"),
        (["--storm", "none.json"], "could not be read"),
        (["--storm", "keep=0.5,stage=2", "--out", "."], "--out is a folder"),
    ],
)
def test_what_cannot_be_drawn_is_refused(cli, photographs, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    done = cli("storm", "show", photographs / "coffee.png", *MODEL, *arguments)
    assert done.code == 2
    assert named in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_a_photograph_that_is_not_there_is_refused(cli, tmp_path):
    done = cli("storm", "show", tmp_path / "none.png", *MODEL, "--storm", "keep=0.5,stage=2")
    assert done.code == 2
    assert "none.png" in done.err
