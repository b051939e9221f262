# SPDX-License-Identifier: Apache-2.0
"""Checks of plugin libraries and engines: another GPU, TensorRT, library, or no plan at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stormrt.pipeline.doctor.plan_header import PlanHeader
from stormrt.pipeline.doctor.subject import read_subject
from tests.pipeline.doctor.boards import (
    LAPTOP,
    facts,
    finding,
    library,
    machine,
    orin,
    plan,
    subject,
)
from tests.pipeline.doctor.folders import asked
from tests.runtime.folders import SCAN, write_folder, write_library


def test_a_plugin_library_that_is_named_and_missing_is_a_problem() -> None:
    found = finding("plugin-not-found", facts(library=library(exists=False)))
    assert found.status == "problem"
    assert "does not exist" in found.found
    assert finding("plugin-not-found", facts(library=library("sm_75"))).status == "ok"


def test_an_engine_with_plugin_nodes_and_no_library_is_a_problem(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("STORMRT_PLUGIN_LIB", raising=False)
    folder = write_folder(tmp_path / "built", plan(), plugins=(SCAN,))
    found = finding("plugin-not-found", facts(subject=asked(folder)))
    assert found.status == "problem"
    assert str(found.mend) == f"stormrt plugins build --target t4 --out {folder}/plugins"


def test_a_bundle_that_is_not_built_yet_misses_no_library(tmp_path) -> None:
    folder = write_folder(tmp_path / "bundle", plugins=(SCAN,), built=False)
    assert finding("plugin-not-found", facts(subject=asked(folder))).status == "ok"
    plain = write_folder(tmp_path / "plain", plan())
    assert finding("plugin-not-found", facts(subject=asked(plain))).found.endswith("plugin nodes")


@pytest.mark.parametrize(
    ("misfit", "said"),
    [
        (library("sm_87", headers="11.1.0"), "against TensorRT 11.1.0, here is 10"),
        (library("sm_75", "sm_89"), "compiled for sm_75 sm_89; this is sm_87"),
        (library("sm_87", arch="x86_64"), "it is for x86_64, this is aarch64"),
    ],
)
def test_a_library_for_another_tensorrt_gpu_or_cpu_is_a_problem(misfit, said: str) -> None:
    found = finding("plugin-library-misfit", orin(library=misfit))
    assert found.status == "problem"
    assert said in found.found
    assert "plugins build" in str(found.mend)


def test_machine_code_runs_within_its_generation_and_ptx_after_it() -> None:
    def status(*codes: str) -> str:
        return finding("plugin-library-misfit", orin(library=library(*codes))).status

    assert status("sm_87") == status("sm_80") == status("compute_75") == "ok"
    assert status("sm_75") == status("sm_89") == status("compute_90") == "problem"


def test_a_library_without_its_manifest_cannot_be_judged() -> None:
    unknown = replace(library(), codes=None, headers=None)
    assert finding("plugin-library-misfit", orin(library=unknown)).status == "cannot tell"


def test_an_engine_with_another_library_than_it_was_built_with_is_a_problem(
    tmp_path, monkeypatch
) -> None:
    from stormrt.pipeline.artifacts import FileDigest
    from stormrt.runtime import manifest_record

    folder = write_folder(tmp_path / "built", plan(), plugins=(SCAN,))
    path, _ = write_library(folder / "plugins")
    entry = FileDigest(path.name, "0" * 64, 9)
    monkeypatch.setattr(manifest_record, "recorded_libraries", lambda _engine: (entry,))
    seen = facts(subject=asked(folder), library=library("sm_75", arch="x86_64", headers="10.3.0"))
    found = finding("plugin-library-misfit", seen)
    assert found.found == "the engine was built with another plugin library"
    assert f"stormrt build {folder}" in str(found.mend)


def test_an_engine_of_another_gpu_is_a_problem(tmp_path) -> None:
    folder = write_folder(tmp_path / "built", plan(), sm=89)
    found = finding("another-gpu", orin(subject=asked(folder)))
    assert found.status == "problem"
    assert found.found == "for SM 8.9 (t4); this is Orin, SM 8.7"
    same = facts(machine=machine(LAPTOP), subject=asked(folder))
    assert finding("another-gpu", same).status == "ok"


def test_a_bundle_for_another_gpu_is_a_problem_before_it_is_built(tmp_path) -> None:
    folder = write_folder(tmp_path / "bundle", built=False)
    assert finding("another-gpu", orin(subject=asked(folder))).status == "problem"
    assert finding("another-gpu", facts(subject=asked(folder))).status == "ok"
    here = finding("another-gpu", facts(machine=machine(None), subject=asked(folder)))
    assert here.status == "cannot tell"
    assert "no CUDA driver" in here.found


def test_an_engine_of_another_tensorrt_is_a_problem(tmp_path) -> None:
    folder = write_folder(tmp_path / "built", plan(), version="10.3.0")
    found = finding("another-tensorrt", facts(subject=asked(folder)))
    assert found.found == "built by TensorRT 10.3.0, here is TensorRT 10.13.3.9"
    assert f"stormrt build {folder}" in str(found.mend)
    assert finding("another-tensorrt", orin(subject=asked(folder))).status == "ok"


@pytest.mark.parametrize(
    ("version", "status"),
    [((10, 3, 0, 30), "ok"), ((10, 3, 1, 0), "problem"), ((8, 6, 2, 3), "problem")],
)
def test_a_plan_without_a_manifest_tells_its_version_itself(tmp_path, version, status) -> None:
    path = tmp_path / "some.engine"
    path.write_bytes(plan(version=version))
    found = finding("another-tensorrt", orin(subject=read_subject(path)))
    assert found.status == status
    assert ".".join(map(str, version)) in found.found


def test_a_plan_whose_runtime_does_not_load_is_told_with_its_version(tmp_path) -> None:
    path = tmp_path / "some.engine"
    path.write_bytes(plan(b"vtrt", (1, 7, 1, 116)))
    found = finding("another-tensorrt", facts(subject=read_subject(path)))
    assert found.status == "cannot tell"
    assert found.found == "built by tensorrt_rtx 1.7.1.116, and tensorrt_rtx does not load here"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("tensorrt", "ok"),
        ("tensorrt_rtx", "ok"),
        ("ultralytics", "problem"),
        ("pointer", "problem"),
        ("empty", "problem"),
        ("other", "problem"),
    ],
)
def test_a_file_that_does_not_begin_as_a_plan_is_a_problem(kind, status) -> None:
    seen = facts(subject=subject(header=PlanHeader(kind, None)))
    found = finding("not-a-plan", seen)
    assert found.status == status
    assert (found.mend is not None) == (status == "problem")


def test_a_plan_that_is_not_its_manifests_is_a_problem(tmp_path) -> None:
    folder = write_folder(tmp_path / "built", plan())
    assert finding("not-a-plan", facts(subject=asked(folder))).status == "ok"
    (folder / "engine.plan").write_bytes(plan() + b"more")
    assert "not the one" in finding("not-a-plan", facts(subject=asked(folder))).found
    (folder / "engine.plan").write_bytes(plan(b"vtrt"))
    found = finding("not-a-plan", facts(subject=asked(folder)))
    assert found.found == "a plan of TensorRT-RTX, and the manifest says tensorrt"
