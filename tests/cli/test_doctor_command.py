# SPDX-License-Identifier: Apache-2.0
"""``stormrt doctor``: the machine, an engine, a message; tables, JSON, exit codes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from stormrt.pipeline.doctor import facts
from stormrt.pipeline.doctor.complaints import COMPLAINTS
from stormrt.pipeline.doctor.facts import Loading
from stormrt.pipeline.doctor.plan_header import read_plan_header
from stormrt.pipeline.engine import build_engine
from stormrt.pipeline.probe import installed_version
from stormrt.targets import load_target
from tests.pipeline.doctor.graphs import graph
from tests.runtime.folders import write_folder

TAG = "Serialization assertion stdVersionRead == x failed.Version tag does not match. Note: ..."
KEYS = {"group", "name", "status", "found", "needed_for", "mend"}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """An output folder with a small engine that TensorRT-RTX has built for a T4."""
    version = installed_version("tensorrt-rtx")
    if version is None:
        pytest.skip("tensorrt_rtx is not installed: no engine can be built here")
    plan = tmp_path / "small.plan"
    model = graph(tmp_path / "model.onnx", np.zeros(8, np.float16))
    build_engine(model, runtime="tensorrt_rtx", target=load_target("t4"), out=plan)
    folder = write_folder(
        tmp_path / "built", plan.read_bytes(), runtime="tensorrt_rtx", version=version
    )
    model.rename(folder / "model.onnx")
    return folder


def test_the_machine_is_checked_with_every_complaint(cli) -> None:
    done = cli("doctor", "--json")
    entries = json.loads(done.out)
    assert done.code == 0
    assert all(set(e) >= KEYS for e in entries)
    complaints = [e for e in entries if e["group"] == "complaint"]
    assert [e["name"] for e in complaints] == [c.id for c in COMPLAINTS]
    assert {e["status"] for e in complaints} <= {"ok", "problem", "cannot tell"}


def test_problems_of_the_machine_do_not_change_the_exit_code(cli, monkeypatch) -> None:
    broken = Loading(None, "ImportError: [Errno 2] libnvinfer.so.10 [/usr/lib]")
    monkeypatch.setattr(facts, "load", lambda _module: broken)
    monkeypatch.setattr(facts.probe, "installed_version", lambda _name: "99.0")
    done = cli("doctor")
    assert done.code == 0
    # Brackets are text, not markup.
    assert "import tensorrt: ImportError: [Errno 2] libnvinfer.so.10 [/usr/lib]" in done.out
    assert "need a path" in done.err


def test_an_engine_is_checked_and_one_that_is_fine_ends_with_0(cli, built: Path) -> None:
    done = cli("doctor", built)
    assert done.code == 0
    assert "a plan of TensorRT-RTX" in done.out
    assert "opset 18" in done.out


def test_an_engine_that_tensorrt_rtx_built_here_tells_that_very_version(built: Path) -> None:
    found = read_plan_header(built / "engine.plan")
    assert found.kind == "tensorrt_rtx"
    assert found.version is not None
    assert ".".join(map(str, found.version)) == installed_version("tensorrt-rtx")


def test_an_engine_with_a_problem_ends_with_1(cli, built: Path) -> None:
    (built / "engine.plan").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    done = cli("doctor", built, "--json")
    (entry,) = [e for e in json.loads(done.out) if e["name"] == "not-a-plan"]
    assert done.code == 1
    assert entry["status"] == "problem"
    assert entry["mend"] == "git lfs pull"


def test_a_bundle_and_a_graph_are_checked(cli, tmp_path) -> None:
    bundle = write_folder(tmp_path / "bundle", built=False)
    graph(bundle / "model.onnx", np.zeros(8, np.float16), opset=17)
    assert "there is no engine yet" in cli("doctor", bundle).out
    assert "opset 17" in cli("doctor", bundle / "model.onnx").out


@pytest.mark.parametrize("how", ["argument", "option", "log", "pipe"])
def test_a_message_is_explained_however_it_is_given(cli, how, tmp_path, monkeypatch) -> None:
    log = tmp_path / "build.log"
    log.write_text(f"a line\n{TAG}\n")
    pipe = io.TextIOWrapper(io.BytesIO(TAG.encode() + b"\xff"))
    monkeypatch.setattr(sys, "stdin", pipe)
    given = {"argument": [TAG], "option": ["--explain", TAG], "log": [log], "pipe": ["-"]}
    done = cli("doctor", *given[how])
    assert done.code == 0
    assert done.out.startswith("The engine does not load: another version of TensorRT\n")
    assert "  1. Build the engine again where it runs" in done.out
    assert "docs/troubleshooting.md#several-tensorrts" in done.out
    assert "here: cannot tell" in done.out


def test_a_message_is_explained_in_json(cli) -> None:
    done = cli("doctor", "--json", "--explain", TAG)
    first, second = json.loads(done.out)
    assert (first["name"], second["name"]) == ("another-tensorrt", "several-tensorrts")
    assert "Version tag does not match" in first["symptoms"]
    assert first["steps"]
    assert first["sources"]
    assert set(first) >= KEYS


def test_a_message_that_is_not_known_ends_with_1(cli) -> None:
    done = cli("doctor", "it does not work")
    assert (done.code, done.out) == (1, "")
    assert "none of this is known" in done.err
    done = cli("doctor", "it does not work", "--json")
    assert (done.code, json.loads(done.out)) == (1, [])


@pytest.mark.parametrize("what", ["build/engine.plan", "model.onnx", "build.log"])
def test_a_path_that_is_not_there_is_no_message(cli, what: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("doctor", what)
    assert done.code == 2
    assert "there is no such file or folder" in done.err
    assert what in done.err


@pytest.mark.parametrize("text", ["x" * 5000, "a/b " * 2000, ""])
def test_a_message_that_can_be_no_path_is_a_message(cli, text: str) -> None:
    assert cli("doctor", text).code in (1, 2)


def test_a_message_and_a_path_together_are_refused(cli) -> None:
    done = cli("doctor", "x.plan", "--explain", "y")
    assert done.code == 2
    assert "expected: one of them" in done.err
