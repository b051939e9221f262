# SPDX-License-Identifier: Apache-2.0
"""What an engine was built for, and how one that does not fit here is refused.

What can go wrong: an engine runs with a plugin library that numbers its tactics differently, and
gives wrong results; TensorRT crashes on a plan of another GPU; the message does not say what to do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline.artifacts import FileDigest
from stormrt.pipeline.build import WORK_FOLDER
from stormrt.pipeline.device.names import PLUGIN_FOLDER
from stormrt.pipeline.schema import MANIFEST_NAME
from stormrt.plugins.builder import CORE_NAME
from stormrt.plugins.native import LIBRARY_VARIABLE
from stormrt.runtime import Engine, manifest_record
from stormrt.runtime.manifest_record import LIBRARY_PLACES, read_record
from stormrt.runtime.record import check_files
from tests.runtime.fake_device import FakeDevice
from tests.runtime.fake_trt import plan_bytes
from tests.runtime.folders import SCAN, write_folder, write_library


def refused(folder: Path, device: FakeDevice, **options) -> InputError:
    """The refusal of an engine; TensorRT has not seen it then."""
    with pytest.raises(InputError) as caught:
        Engine.load(folder, device=device, **options)
    assert device.calls == []
    return caught.value


def record_digests(monkeypatch: pytest.MonkeyPatch, *entries: FileDigest) -> None:
    """What the manifest says of plugin libraries."""
    monkeypatch.setattr(manifest_record, "recorded_libraries", lambda _engine: entries)


# --- Another GPU, version, plan ------------------------------------------------------------------


def test_an_engine_for_another_gpu_is_refused(tmp_path, trt):
    other = FakeDevice(sm=86)
    error = refused(write_folder(tmp_path / "built"), other)
    assert error.what == "the engine is for another GPU"
    assert (error.got, error.expected) == ("A GPU, SM 8.6", "SM 7.5 (t4)")
    assert "stormrt build --target" in (error.fix or "")


@pytest.mark.parametrize("version", ["10.3.0.26", "10.16.2", "11.4.1"])
def test_an_engine_of_another_version_is_refused(tmp_path, trt, device, version):
    folder = write_folder(tmp_path / "built", version=version)
    error = refused(folder, device)
    assert error.what == "the engine was built by another version of TensorRT"
    assert (error.got, error.expected) == ("TensorRT 10.3.0", f"TensorRT {version}")
    assert f"stormrt build {folder}" in (error.fix or "")


def test_a_plan_that_has_changed_since_it_was_built_is_refused(tmp_path, trt, device):
    folder = write_folder(tmp_path / "built")
    plan = folder / "engine.plan"
    plan.write_bytes(plan.read_bytes() + b" ")
    error = refused(folder, device)
    assert error.what == "the engine is not the one that its manifest describes"
    assert error.where == str(plan)
    assert (error.got or "").startswith("SHA-256 ")
    assert error.got != error.expected


def test_a_plan_beside_its_manifest_is_checked_like_its_folder(tmp_path, trt):
    folder = write_folder(tmp_path / "built")
    error = refused(folder / "engine.plan", FakeDevice(sm=87))
    assert error.expected == "SM 7.5 (t4)"


def test_a_plan_that_a_manifest_beside_it_does_not_mean_is_taken_as_it_is(tmp_path, device, trt):
    folder = write_folder(tmp_path / "built", sm=87)
    other = folder / "other.plan"
    other.write_bytes((folder / "engine.plan").read_bytes())
    Engine.load(other, device=device).close()


# --- Plugin libraries ----------------------------------------------------------------------------


def test_the_library_that_the_build_left_is_loaded_before_the_engine(
    tmp_path, trt, device, monkeypatch
):
    folder = write_folder(tmp_path / "built", plugins=(SCAN,))
    _, digest = write_library(folder / "plugins")
    record_digests(monkeypatch, FileDigest(f"plugins/{CORE_NAME}", digest, 9))
    Engine.load(folder, device=device).close()
    assert device.calls[:2] == [f"load library {CORE_NAME}", "deserialize"]


def test_an_engine_with_another_plugin_library_is_refused(tmp_path, trt, device, monkeypatch):
    folder = write_folder(tmp_path / "built", plugins=(SCAN,))
    path, found = write_library(folder / "plugins", b"rebuilt since")
    record_digests(monkeypatch, FileDigest(f"plugins/{CORE_NAME}", "0" * 64, 9))
    error = refused(folder, device)
    assert error.what == "the engine was built with another plugin library"
    assert error.where == str(path)
    assert (error.got, error.expected) == (f"SHA-256 {found}", f"SHA-256 {'0' * 64}")
    assert f"stormrt build {folder}" in (error.fix or "")


def test_a_library_that_is_named_is_held_to_the_same_digest(tmp_path, trt, device, monkeypatch):
    folder = write_folder(tmp_path / "built", plugins=(SCAN,))
    same, digest = write_library(tmp_path / "same")
    other, _ = write_library(tmp_path / "other", b"another")
    record_digests(monkeypatch, FileDigest(f"plugins/{CORE_NAME}", digest, 9))
    assert refused(folder, device, plugin_libraries=[other]).where == str(other)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(other))
    assert refused(folder, device).where == str(other)
    # An argument goes before the environment.
    Engine.load(folder, device=device, plugin_libraries=[same]).close()


def test_an_engine_with_plugins_and_no_library_is_refused(tmp_path, trt, device):
    folder = write_folder(tmp_path / "built", plugins=(SCAN,))
    error = refused(folder, device)
    assert error.what == "the engine has plugin nodes, and there is no plugin library"
    assert LIBRARY_VARIABLE in (error.expected or "")
    error = refused(folder, device, plugin_libraries=[tmp_path / "gone.so"])
    assert error.what == "the plugin library does not exist"
    assert error.where == str(tmp_path / "gone.so")


def test_an_engine_of_standard_ops_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setenv(LIBRARY_VARIABLE, "/nowhere")
    assert read_record(write_folder(tmp_path / "a")).plugins == ()
    rtx = write_folder(tmp_path / "b", runtime="tensorrt_rtx", version="1.7.1.116")
    assert read_record(rtx).plugins == ()


def test_libraries_are_looked_for_where_builds_leave_them(tmp_path):
    assert (PLUGIN_FOLDER, f"{WORK_FOLDER}/{PLUGIN_FOLDER}") == LIBRARY_PLACES
    for index, place in enumerate(LIBRARY_PLACES):
        folder = write_folder(tmp_path / str(index), plugins=(SCAN,))
        path, _ = write_library(folder / place)
        assert [p.path for p in read_record(folder).plugins] == [path]


# --- What is no engine ---------------------------------------------------------------------------


def test_a_bundle_without_its_engine_says_how_to_build_it(tmp_path):
    folder = write_folder(tmp_path / "a bundle", built=False)
    with pytest.raises(InputError, match="not built yet") as caught:
        read_record(folder)
    assert f"stormrt build '{folder}'" in (caught.value.fix or "")


def test_the_fp16_engine_beside_an_int8_one_is_held_to_its_own_record(tmp_path, device, trt):
    folder = write_folder(tmp_path / "built", fp16_plan=plan_bytes(2))
    plan = folder / "engine.fp16.plan"
    with Engine.load(plan, device=device) as engine:
        assert engine.spec.most_batch == 2
    plan.write_bytes(plan_bytes(3))
    with pytest.raises(InputError, match="not the one that its manifest describes"):
        Engine.load(plan, device=device)
    with Engine.load(folder, device=device) as engine:
        assert engine.spec.most_batch == 1


def test_an_int8_engine_that_was_refused_is_not_run_and_the_other_is_named(tmp_path):
    folder = write_folder(
        tmp_path / "built", built=False, refused="cosine 0.9", fp16_plan=plan_bytes()
    )
    with pytest.raises(InputError, match="was refused when it was built") as caught:
        read_record(folder)
    assert caught.value.got == "cosine 0.9"
    assert str(folder / "engine.fp16.plan") in (caught.value.fix or "")
    assert read_record(folder / "engine.fp16.plan").sm == 75


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such engine"):
        read_record(tmp_path / "gone.plan")
    with pytest.raises(InputError, match="could not be read"):
        read_record(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="damaged or of another version"):
        read_record(tmp_path)
    folder = write_folder(tmp_path / "built")
    (folder / "engine.plan").unlink()
    with pytest.raises(InputError, match="the engine's file is missing"):
        check_files(read_record(folder))


def test_a_runtime_that_the_manifest_contradicts_is_refused(tmp_path):
    folder = write_folder(tmp_path / "built")
    assert read_record(folder, "tensorrt").runtime == "tensorrt"
    with pytest.raises(InputError, match="built by another runtime"):
        read_record(folder, "tensorrt_rtx")


def test_an_engine_of_a_runtime_that_there_is_not_is_refused_when_it_is_read(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / MANIFEST_NAME
    content = json.loads(path.read_text())
    content["engine"]["runtime"] = "tensorrt1"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"manifest\.json is damaged") as caught:
        read_record(tmp_path)
    assert "engine.runtime" in str(caught.value)


def test_a_real_tensorrt_is_asked_for_where_none_is_installed(tmp_path, device, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentMissingError, match="TensorRT is not installed"):
        Engine.load(write_folder(tmp_path / "built"), device=device)
