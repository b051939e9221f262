# SPDX-License-Identifier: Apache-2.0
"""Writing a package: whole or not at all, with an index, a README that is true, and the script."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from stormrt.errors import InputError
from stormrt.pipeline.package import assemble
from stormrt.pipeline.package.assemble import PackageIndex, package_bundle
from stormrt.pipeline.package.parts import Host, template
from tests.pipeline.package_bundles import digest, make_bundle, make_library

HOSTS = get_args(Host)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"engine": "tensorrt"},
        {"engine": "tensorrt_rtx"},
        {"plugins": True, "target": "orin-nano-8g"},
        {"plugins": True, "engine": "tensorrt"},
        {"batch": 4, "dynamic": True, "card": False},
    ],
    ids=["no-engine", "engine", "rtx", "orin", "plugins", "dynamic"],
)
def test_every_host_takes_every_kind_of_bundle(tmp_path, host, wanted):
    bundle = make_bundle(tmp_path / "b", **wanted)
    if wanted.get("plugins") and wanted.get("engine"):
        make_library(bundle)
    package = package_bundle(bundle, host, tmp_path / "p")
    files = content(package.folder)
    index = PackageIndex.read(package.folder / "package.json")
    assert index == package.index
    assert {f.name for f in index.files} == set(files) - {"package.json"}
    for file in index.files:
        assert file.sha256 == digest(package.folder / file.name).sha256
    for name, data in files.items():
        if b"\0" not in data:  # a text; random bytes may hold anything
            assert b"@{" not in data, name
        assert not name.endswith((".tmp", ".part"))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize("host", HOSTS)
def test_the_same_bundle_gives_the_same_bytes(tmp_path, host):
    bundle = make_bundle(tmp_path / "b", engine="tensorrt")
    first = content(package_bundle(bundle, host, tmp_path / "one").folder)
    assert content(package_bundle(bundle, host, tmp_path / "two").folder) == first


@pytest.mark.parametrize(
    ("host", "engine", "state"),
    [
        *[(h, None, "not built") for h in HOSTS],
        *[(h, "tensorrt", "included") for h in HOSTS if h != "deepstream"],
        ("deepstream", "tensorrt", "not built"),
        ("plain", "tensorrt_rtx", "included"),
        ("triton", "tensorrt_rtx", "of TensorRT-RTX"),
        ("isaac-ros", "tensorrt_rtx", "of TensorRT-RTX"),
    ],
)
def test_an_engine_goes_along_where_the_host_runs_it(tmp_path, host, engine, state):
    bundle = make_bundle(tmp_path / "b", engine=engine)
    package = package_bundle(bundle, host, tmp_path / "p")
    plans = [f.name for f in package.index.files if f.name.endswith(".plan")]
    assert package.index.engine == state
    assert len(plans) == (state == "included")
    readme = (package.folder / "README.md").read_text()
    assert ("build_engine.sh" in readme) == (state != "included")
    for note in package.index.notes:
        assert f"- {note}" in readme


@pytest.mark.parametrize("host", HOSTS)
def test_a_readme_says_that_the_host_was_not_run(tmp_path, host):
    readme = package_bundle(make_bundle(tmp_path / "b"), host, tmp_path / "p").folder / "README.md"
    checked = readme.read_text().split("## What was checked")[1]
    assert "**not run**" in checked
    assert "**checked**" in checked


def test_numbered_classes_and_a_missing_library_are_told(tmp_path):
    bundle = make_bundle(tmp_path / "b", plugins=True, card=False)
    notes = " ".join(package_bundle(bundle, "triton", tmp_path / "p").index.notes)
    assert "--labels" in notes
    assert "stormrt plugins build --target t4" in notes


def test_an_earlier_package_is_replaced_as_a_whole(tmp_path):
    bundle, out = make_bundle(tmp_path / "b", engine="tensorrt"), tmp_path / "p"
    package_bundle(bundle, "triton", out)
    package_bundle(bundle, "plain", out)
    assert not (out / "model_repository").exists()
    assert PackageIndex.read(out / "package.json").host == "plain"


def test_a_file_that_is_no_packages_is_not_lost(tmp_path):
    """Such as an engine that was built in the package: minutes of work on a board."""
    bundle, out = make_bundle(tmp_path / "b"), tmp_path / "p"
    package_bundle(bundle, "isaac-ros", out)
    (out / "engine.plan").write_bytes(b"built here")
    with pytest.raises(InputError, match=r"no package's[\s\S]*engine\.plan"):
        package_bundle(bundle, "isaac-ros", out)
    assert (out / "engine.plan").read_bytes() == b"built here"


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    out = tmp_path / "p"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        package_bundle(make_bundle(tmp_path / "b"), "plain", out)
    assert content(out) == {"thesis.txt": b"years of work"}


def test_a_package_is_not_written_into_the_bundle_or_over_a_file(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    with pytest.raises(InputError, match="into the bundle"):
        package_bundle(bundle, "plain", bundle)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        package_bundle(bundle, "plain", tmp_path / "file" / "p")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_earlier_package_as_it_was(tmp_path, monkeypatch, error):
    bundle, out = make_bundle(tmp_path / "b", engine="tensorrt"), tmp_path / "p"
    package_bundle(bundle, "triton", out)
    before = content(out)
    write, done = assemble._write, []

    def fail(folder, file):
        if len(done) == 3:
            raise error
        done.append(file)
        write(folder, file)

    monkeypatch.setattr(assemble, "_write", fail)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        package_bundle(bundle, "plain", out)
    assert content(out) == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    left = tmp_path / ".p.stormrt" / "new"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    package = package_bundle(bundle, "plain", tmp_path / "p")
    assert not (package.folder / "half").exists()
    assert not (tmp_path / ".p.stormrt").exists()


def test_a_read_only_folder_is_said_to_be_one(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    place = tmp_path / "place"
    place.mkdir(mode=0o500)
    with pytest.raises(InputError, match="could not write"):
        package_bundle(make_bundle(tmp_path / "b"), "plain", place / "p")


def test_an_unknown_host_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no such host[\s\S]*isaac-ros, triton"):
        package_bundle(tmp_path, "ros", tmp_path / "p")


def test_a_damaged_index_is_refused(tmp_path):
    bundle, out = make_bundle(tmp_path / "b"), tmp_path / "p"
    package_bundle(bundle, "plain", out)
    (out / "package.json").write_text("{}")
    with pytest.raises(InputError, match=r"package\.json is damaged"):
        package_bundle(bundle, "plain", out)


def test_a_template_with_a_name_that_is_not_given_fails():
    with pytest.raises(KeyError, match="target"):
        template("build_engine.sh.template", {})


TRTEXEC = """#!/bin/sh
if [ "$1" = --help ]; then echo "@help@"; exit 0; fi
printf '%s\\n' "$@" > arguments.txt
for a in "$@"; do case $a in --saveEngine=*) echo plan > "${a#--saveEngine=}";; esac; done
exit @code@
"""


class TestScript:
    """``build_engine.sh``, with a stand-in for trtexec."""

    @pytest.fixture
    def build(self, tmp_path):
        def run(*arguments: str, code: int = 0, typed: bool = True, host="isaac-ros", **wanted):
            bundle = make_bundle(tmp_path / "b", **wanted)
            if wanted.get("plugins"):
                make_library(bundle)
            package = package_bundle(bundle, host, tmp_path / "p").folder
            tool = tmp_path / "trtexec"
            text = TRTEXEC.replace("@code@", str(code))
            tool.write_text(text.replace("@help@", "--stronglyTyped" if typed else "nothing"))
            tool.chmod(0o755)
            done = subprocess.run(
                [package / "build_engine.sh", *arguments],
                cwd="/",
                env={"PATH": os.environ["PATH"], "TRTEXEC": str(tool)},
                capture_output=True,
                text=True,
                check=False,
            )
            listed = package / "arguments.txt"
            return done, package, listed.read_text().split("\n")[:-1] if listed.exists() else []

        return run

    def test_the_recipes_settings_become_flags(self, build):
        done, package, arguments = build(target="t4")
        assert done.returncode == 0, done.stderr
        assert arguments == [
            "--stronglyTyped",
            "--onnx=model.onnx",
            "--noTF32",
            "--memPoolSize=workspace:4096",
            "--builderOptimizationLevel=3",
            "--skipInference",
            "--saveEngine=engine.plan.part",
        ]
        assert (package / "engine.plan").read_text() == "plan\n"
        assert not (package / "engine.plan.part").exists()

    def test_a_trtexec_without_the_flag_is_not_given_it(self, build):
        _, _, arguments = build(typed=False)
        assert "--stronglyTyped" not in arguments

    def test_no_flag_asks_for_a_precision(self, build):
        _, _, arguments = build(precision="int8")
        assert not {"--fp16", "--int8", "--best", "--bf16"} & set(arguments)

    def test_a_dynamic_batch_has_a_profile(self, build):
        _, _, arguments = build(batch=8, dynamic=True)
        assert "--minShapes=images:1x3x24x32" in arguments
        assert "--maxShapes=images:8x3x24x32" in arguments

    def test_plugins_are_loaded_through_the_registry(self, build):
        _, _, arguments = build(plugins=True)
        assert "--dynamicPlugins=plugins/libstormrt_plugins.so" in arguments

    def test_further_arguments_go_to_trtexec(self, build):
        _, _, arguments = build("--timingCacheFile=a b.cache")
        assert arguments[-1] == "--timingCacheFile=a b.cache"

    def test_a_build_that_fails_leaves_no_plan(self, build):
        done, package, _ = build(code=1)
        assert done.returncode == 1
        assert not (package / "engine.plan").exists()

    def test_tritons_plan_is_built_into_its_repository(self, build):
        done, package, _ = build(host="triton")
        assert done.returncode == 0, done.stderr
        assert (package / "model_repository/tiny/1/model.plan").is_file()

    def test_what_is_missing_is_named(self, tmp_path):
        bundle = make_bundle(tmp_path / "b", plugins=True)
        package = package_bundle(bundle, "plain", tmp_path / "p").folder
        for tool, says in (
            ("/nowhere/trtexec", "TRTEXEC="),
            ("/bin/true", "plugins.so is missing"),
        ):
            done = subprocess.run(
                [package / "build_engine.sh"],
                env={"PATH": os.environ["PATH"], "TRTEXEC": tool},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 3
            assert says in done.stderr


def test_the_index_holds_no_path_of_the_machine(tmp_path):
    bundle = make_bundle(tmp_path / "b", engine="tensorrt")
    package = package_bundle(bundle, "plain", tmp_path / "p")
    assert str(tmp_path) not in (package.folder / "package.json").read_text()
    assert json.loads((package.folder / "package.json").read_text())["target"] == "t4"
