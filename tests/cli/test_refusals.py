# SPDX-License-Identifier: Apache-2.0
"""What a user can get wrong: one clear message, exit code 2, and everything as it was before."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from stormrt.pipeline.cli.console import show_json
from stormrt.storm import build_vmamba
from tests.pipeline.support import CLASSES, GATED, ROOT, SMALL, published, small_variants


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Weights of both small models, and what may happen to a file of them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with small_variants():
        for name in (SMALL, GATED):
            torch.save({"model": build_vmamba(name, CLASSES).state_dict()}, folder / f"{name}.pth")
    whole = (folder / f"{SMALL}.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "text.pth").write_text("not weights")
    (folder / "empty.pth").write_bytes(b"")
    torch.save({"model": {}}, folder / "no_weights.pth")
    return folder


def refused(done, *words: str) -> None:
    """One message, with these words in it, and no traceback."""
    assert done.code == 2, done
    assert done.out == ""
    assert "Traceback" not in done.err
    assert done.err.count("error: ") == 1, done.err
    for word in words:
        assert word in done.err, f"{word!r} is not in: {done.err}"


RECIPE = (ROOT / "targets" / "t4.toml").read_text()

BAD_OPTIONS = {
    "an unknown model": ({"model": "vmamba_tinny"}, ["unknown model", "did you mean"]),
    "an unknown target": ({"target": "t5"}, ["no target 't5'", "did you mean 't4'"]),
    "a precision that is none": ({"precision": "int3"}, ["no precision 'int3'", "fp32 or fp16"]),
    "nothing to keep": ({"storm": "keep=0"}, ["out of range", "0"]),
    "more than all to keep": ({"storm": "keep=1.5"}, ["out of range", "1.5"]),
    "nan to keep": ({"storm": "keep=nan"}, ["out of range", "nan"]),
    "a share that is no number": ({"storm": "keep=most"}, ["not a number", "most"]),
    "an unknown key of STORM": ({"storm": "keep=0.5,hosts=x"}, ["was not understood"]),
    "a block that is not there": (
        {"storm": "keep=0.5,stage=0,block=9"},
        ["stage 0", "blocks 0 to 0"],
    ),
    "a plan file that is not there": (
        {"storm": "plan.json"},
        ["plan could not be read", "plan.json"],
    ),
    "too small an image": ({"size": "17x17"}, ["too small", "17x17", "32 pixels"]),
    "a size that is no size": ({"size": "large"}, ["image size was not understood", "large"]),
    "a size of three numbers": ({"size": "1x2x3"}, ["image size was not understood"]),
    "no images a call": ({"batch": 0}, ["batch is too small", "--batch"]),
    "no classes": ({"classes": 0}, ["--classes"]),
    "a seed that PyTorch cannot take": ({"seed": 2**70}, ["--seed"]),
    "an unknown first stage": ({"from": "compile"}, ["no such stage", "--from", "compile"]),
    "an unknown last stage": ({"to": "ship"}, ["no such stage", "--to", "ship"]),
    "photographs that are not there": ({"photos": "/no/such/folder"}, ["photographs do not exist"]),
    "a recipe that is not there": ({"target": "no.toml"}, ["recipe cannot be read", "no.toml"]),
    "a runtime that the target has not": ({"runtime": "tensorrt_rtx"}, ["no runtime"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_option_is_refused_and_earlier_results_stay(cli, orin, options, name):
    changes, words = BAD_OPTIONS[name]
    before = published(orin)
    target = changes.get("target", "orin-nano-8g")
    others = {k: v for k, v in changes.items() if k != "target"}
    refused(cli(*options(target, orin, **others)), *words)
    assert published(orin) == before


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("none.pth", ["does not exist", "none.pth"]),
        ("cut.pth", ["cut off, damaged", "cut.pth"]),
        ("cut.safetensors", ["cut off, damaged", "cut.safetensors"]),
        ("text.pth", ["cut off, damaged"]),
        ("empty.pth", ["cut off, damaged", "0 bytes"]),
        ("no_weights.pth", ["holds no weights"]),
        (f"{GATED}.pth", [f"is not of {SMALL}", f"use --model {GATED}"]),
        (".", ["checkpoint"]),
    ],
)
def test_a_bad_checkpoint_is_refused_and_earlier_results_stay(
    cli, orin, options, checkpoints, file, words
):
    before = published(orin)
    refused(cli(*options("orin-nano-8g", orin, checkpoint=checkpoints / file)), *words)
    assert published(orin) == before


def test_after_a_refused_checkpoint_the_next_good_build_is_the_earlier_one(
    cli, orin, options, checkpoints
):
    before = {n: d for n, (d, _) in published(orin).items()}
    cli(*options("orin-nano-8g", orin, checkpoint=checkpoints / "cut.pth"))
    assert cli(*options("orin-nano-8g", orin)).code == 0
    assert {n: d for n, (d, _) in published(orin).items()} == before


def test_a_text_file_as_a_photograph_is_refused(cli, orin, options, tmp_path, photographs):
    folder = shutil.copytree(photographs, tmp_path / "photos")
    (folder / "z.jpg").write_text("not a photograph")
    before = published(orin)
    for photos in (folder, folder / "z.jpg", ROOT / "pyproject.toml"):
        refused(cli(*options("orin-nano-8g", orin, photos=photos)), "photograph could not be read")
    assert published(orin) == before


def test_a_photograph_that_was_cut_off_is_refused(cli, orin, options, tmp_path, photographs):
    folder = shutil.copytree(photographs, tmp_path / "photos")
    whole = (folder / "coffee.png").read_bytes()
    (folder / "coffee.png").write_bytes(whole[: len(whole) // 2])
    before = published(orin)
    refused(cli(*options("orin-nano-8g", orin, photos=folder)), "photograph", "coffee.png")
    assert published(orin) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("sm_count = 40", "sm_count = 40\nsm_kount = 1"), ["sm_kount", "unknown key"]),
        (("sm = 75", 'sm = "75"'), ["device.sm"]),
        (("schema = 1", "schema = 1 ="), ["not valid TOML"]),
        (("rel_l2 = 1e-2", "rel_l2 = -1"), ["tolerance.fp16.rel_l2"]),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_refused_by_its_key(cli, orin, options, tmp_path, change, words):
    recipe = tmp_path / "mine.toml"
    assert change[0] in RECIPE
    recipe.write_text(RECIPE.replace(*change))
    before = published(orin)
    refused(cli(*options(str(recipe), orin)), "mine.toml", *words)
    assert published(orin) == before


def test_an_output_folder_that_is_a_file_is_refused(cli, options, tmp_path):
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        refused(cli(*options("orin-nano-8g", out)), "output folder is a file")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_output_folder_that_cannot_be_written_is_refused(cli, options):
    # As root every ordinary folder can be written; below /proc nobody can make one.
    refused(cli(*options("orin-nano-8g", "/proc/stormrt")), "could not write", "/proc/stormrt")


def test_an_engine_that_cannot_be_built_leaves_the_earlier_one(cli, t4, options, tmp_path):
    recipe = tmp_path / "volta.toml"
    recipe.write_text(RECIPE.replace("sm = 75", "sm = 70").replace('id = "t4"', 'id = "v100"'))
    before = published(t4)
    refused(cli(*options(str(recipe), t4)), "builds nothing for SM 7.0", "device.sm")
    assert published(t4) == before


class TestUsage:
    """What the option parser refuses; its messages begin with the usage."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ["build", "--no-such-option"],
            ["build", "--batch", "two"],
            ["build", "--runtime", "cuda"],
            ["export", "--lowering", "half", "--model", SMALL, "--out", "x.onnx"],
            ["export"],
            ["no-such-verb"],
        ],
    )
    def test_bad_usage_exits_2_with_a_message(self, cli, arguments):
        done = cli(*arguments)
        assert done.code == 2
        assert done.out == ""
        assert "Error" in done.err
        assert "Traceback" not in done.err

    def test_a_build_without_model_or_target_is_refused_with_an_example(self, cli):
        refused(cli("build"), "--model and --target are needed", "stormrt build --model")
        refused(cli("build", "--model", SMALL), "--model and --target are needed")

    def test_a_bundle_and_options_of_a_new_build_exclude_each_other(self, cli, orin):
        refused(cli("build", orin, "--model", SMALL), "either a bundle or")


class TestJsonErrors:
    def test_an_error_is_json_on_stdout_with_the_same_exit_code(self, cli, options, tmp_path):
        done = cli(*options("orin-nano-8g", tmp_path / "out", size="17x17"), "--json")
        assert done.code == 2
        error = json.loads(done.out)["error"]
        assert error["what"] == "the image is too small for four stages"
        assert error["got"] == "17x17 pixels"
        assert "error: " not in done.err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["inspect", "/no/such/path", "--json"],
            ["validate", "/no/such/folder", "--json"],
            ["targets", "show", "t5", "--json"],
            ["build", "/no/such/bundle", "--json"],
        ],
    )
    def test_every_verb_does_so(self, cli, arguments):
        done = cli(*arguments)
        assert done.code == 2
        assert set(json.loads(done.out)["error"]) <= {"what", "where", "got", "expected", "fix"}

    def test_what_is_printed_as_json_is_json(self, capsys):
        show_json({"a": 1, "b": None})
        assert json.loads(capsys.readouterr().out) == {"a": 1, "b": None}
