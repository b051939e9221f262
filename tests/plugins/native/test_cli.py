# SPDX-License-Identifier: Apache-2.0
"""``stormrt plugins``: what the commands ask for and how they answer, without compiling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline.cli import plugins
from stormrt.pipeline.cli.main import app
from stormrt.plugins.builder import BuildResult, LibraryManifest
from stormrt.plugins.check import LoadCheck
from stormrt.plugins.derive.trt import expected_creators
from stormrt.plugins.selective_scan_2d import SPEC


def run(*arguments: object):
    return CliRunner().invoke(app, ["plugins", *map(str, arguments)])


def test_list_names_every_operator():
    listed = {entry["name"]: entry for entry in json.loads(run("list", "--json").stdout)}
    assert {c.name for c in expected_creators()} <= set(listed)
    assert listed[SPEC.name]["version"] == SPEC.version
    assert SPEC.name in run("list").stdout


@pytest.mark.parametrize("name", [SPEC.name, SPEC.torch_name, SPEC.qualified_name])
def test_show_knows_an_operator_by_each_of_its_names(name: str):
    shown = json.loads(run("show", name, "--json").stdout)
    assert [t["name"] for t in shown["inputs"]] == [t.name for t in SPEC.inputs]
    assert shown["attributes"] == SPEC.attributes()
    assert "(B, K*D, H, W)" in run("show", name).stdout


def test_show_names_the_operators_that_there_are():
    error = run("show", "NoSuchOp").exception
    assert isinstance(error, InputError)
    assert SPEC.name in str(error.expected)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The archs that the command asks the builder for."""
    asked: list[tuple[int, ...]] = []

    def build_library(out: Path, archs, *, force: bool, strict: bool) -> BuildResult:
        asked.append(tuple(archs))
        manifest = LibraryManifest(1, "key", "s", ("sm_87",), "aarch64", "10.3.0", "n", "h", (), ())
        return BuildResult(out / "core.so", out / "autoload.so", manifest, skipped=force)

    monkeypatch.setattr(plugins, "build_library", build_library)
    return asked


@pytest.mark.parametrize(
    ("options", "archs"),
    [
        ([], (75, 87, 90)),
        (["--target", "t4"], (75,)),
        (["--target", "orin-agx-64g"], (87,)),
        (["--arch", "87"], (87,)),
        (["--arch", "75,87"], (75, 87)),
        (["--arch", "75 87"], (75, 87)),
    ],
)
def test_build_compiles_for_the_gpus_that_are_named(built, options, archs, tmp_path: Path):
    result = run("build", "--out", tmp_path, *options)
    assert result.exit_code == 0
    assert built == [archs]
    assert f"export STORMRT_PLUGIN_LIB={tmp_path.resolve()}/core.so" in result.stdout


@pytest.mark.parametrize("options", [["--arch", "sm_87"], ["--arch", "87", "--target", "t4"]])
def test_build_refuses_what_it_does_not_understand(built, options):
    assert isinstance(run("build", *options).exception, InputError)
    assert built == []


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (("passed", "passed", "not run"), 0),
        (("passed", "passed", "failed"), 1),
        (("failed", "not run", "not run"), 1),
        (("passed", "not run", "not run"), 3),
    ],
)
def test_the_exit_code_of_check_is_its_verdict(
    statuses, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hosts = ("the library itself", "tensorrt", "tensorrt_rtx")
    checks = tuple(LoadCheck(h, s, "detail") for h, s in zip(hosts, statuses, strict=True))
    monkeypatch.setattr(plugins, "check_library", lambda path: checks)
    (tmp_path / "core.so").write_text("")
    result = run("check", "--library", tmp_path / "core.so", "--json")
    assert result.exit_code == code
    assert [c["status"] for c in json.loads(result.stdout)] == list(statuses)


def test_check_needs_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert isinstance(run("check", "--library", tmp_path / "none.so").exception, InputError)
    monkeypatch.delenv("STORMRT_PLUGIN_LIB", raising=False)
    assert isinstance(run("check").exception, EnvironmentMissingError)
