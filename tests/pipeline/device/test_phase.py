# SPDX-License-Identifier: Apache-2.0
"""The device phase with full TensorRT, on a T4 and a TensorRT that are imitations.

What can go wrong: an engine that is far from PyTorch passes; a failure to run it loses what was
built; a second build times every kernel again, or asks for memory that is not free; a kill between
the engine and the manifest makes the bundle useless; INT8's FP16 engine is left unchecked.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline import probe
from stormrt.pipeline.artifacts import PluginUse
from stormrt.pipeline.device import memory
from stormrt.pipeline.device.reading import read_device_report
from stormrt.pipeline.device.timing import CALLS, WARM_UP
from stormrt.pipeline.device_build import DeviceOutcome, build_bundle
from stormrt.pipeline.schema import Manifest
from stormrt.runtime import Engine
from tests.pipeline.device.bundles import IMAGES, make_bundle
from tests.runtime.fake_trt import model

pytestmark = pytest.mark.usefixtures("trt")
MIB = 1 << 20


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


# --- What it makes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "dynamic"), [(1, False), (2, False), (3, True)])
def test_a_bundle_becomes_an_engine_that_is_validated_and_timed(tmp_path, rng, batch, dynamic):
    folder = make_bundle(tmp_path / "b", rng, batch=batch, dynamic=dynamic, error=1e-3)
    done = build_bundle(folder)
    (engine,) = done.report.engines
    assert done.report.passed
    assert engine.validation.status == "passed"
    assert engine.validation.metrics is not None
    assert engine.validation.metrics.images == IMAGES
    assert engine.validation.metrics.rel_l2 == pytest.approx(1e-3, rel=0.05)
    timed = engine.benchmark
    assert (timed.status, timed.cuda_graph, timed.reason) == ("done", True, "")
    assert (timed.calls, timed.batch) == (CALLS, batch)
    assert timed.calls >= 100
    assert timed.warm_up >= WARM_UP
    assert timed.engine is not None
    assert timed.engine.p50_ms == timed.engine.mean_ms == batch  # the fake GPU's clock
    assert timed.call is not None
    assert 0 < timed.call.least_ms <= timed.call.p50_ms <= timed.call.p90_ms <= timed.call.p99_ms
    assert timed.call.p99_ms <= timed.call.most_ms


def test_manifest_and_report_say_what_was_built(tmp_path, rng):
    folder = make_bundle(tmp_path / "b", rng)
    done = build_bundle(folder)
    assert read_device_report(folder / "device_report.json") == done.report
    manifest = Manifest.read(folder / "manifest.json")
    assert manifest == done.manifest
    assert manifest.engine is not None
    assert manifest.engine.file == done.report.engines[0].file
    assert (manifest.engine.runtime, manifest.engine.sm) == ("tensorrt", 75)
    assert [f.name for f in manifest.files] == ["model.onnx", "golden.npz", "engine.plan"]
    assert done.report.machine.gpu == "A GPU"
    assert done.report.made_by.startswith("stormrt build")


def test_the_engine_runs_from_its_folder_afterwards(tmp_path, rng, device):
    folder = make_bundle(tmp_path / "b", rng)
    build_bundle(folder)
    images = rng.normal(size=(1, 3, 4, 6)).astype("f4")
    with Engine.load(folder, device=device) as engine:
        assert (engine.infer(images) == model(images)).all()


def test_an_int8_build_and_its_fp16_one_are_both_built_and_checked(tmp_path, rng):
    folder = make_bundle(tmp_path / "b", rng, int8=True, error=0.05)
    report = build_bundle(folder).report
    assert [e.file.name for e in report.engines] == ["engine.plan", "engine.fp16.plan"]
    assert [e.precision for e in report.engines] == ["int8", "fp16"]
    # 5 % is within INT8's tolerance and outside FP16's.
    assert [e.validation.status for e in report.engines] == ["passed", "failed"]
    assert not report.passed
    manifest = Manifest.read(folder / "manifest.json")
    assert manifest.fp16 is not None
    assert manifest.fp16.engine is not None
    assert manifest.fp16.engine.file.name == "engine.fp16.plan"


# --- Timing cache and memory ---------------------------------------------------------------------


def test_the_second_build_reuses_what_the_first_has_timed(tmp_path, rng):
    folder = make_bundle(tmp_path / "b", rng)
    assert build_bundle(folder).report.engines[0].timing_cache == "new"
    assert build_bundle(folder).report.engines[0].timing_cache == "reused"
    (cache,) = (folder / ".stormrt").glob("*.cache")
    cache.write_bytes(b"of another GPU")
    engine = build_bundle(folder).report.engines[0]
    assert engine.timing_cache == "new"
    assert "another TensorRT or GPU" in engine.warnings[0]


@pytest.mark.parametrize(
    ("host", "gpu", "limit"),
    [
        (16000, 15000, 4096),  # the recipe's
        (3000, 15000, 1500),
        (16000, 2000, 1000),
        ("unknown", 2000, 1000),
        ("unknown", "unknown", 4096),
        (20, 20, 64),
    ],
)
def test_scratch_memory_is_the_recipes_or_half_of_what_is_free(
    tmp_path, rng, trt, monkeypatch, host, gpu, limit
):
    monkeypatch.setattr(memory, "host_free_mib", lambda: host)
    monkeypatch.setattr(memory, "gpu_free_mib", lambda: gpu)
    report = build_bundle(make_bundle(tmp_path / "b", rng)).report
    assert trt.workspaces == [limit * MIB]
    assert report.engines[0].workspace_mib == limit
    assert report.recipe_workspace_mib == 4096
    numbers = [n for n in (host, gpu) if n != "unknown"]
    assert report.free_memory_mib == (min(numbers) if numbers else "unknown")


# --- What it does not hide -----------------------------------------------------------------------


def test_an_engine_far_from_pytorch_fails_by_name_and_number(tmp_path, rng):
    folder = make_bundle(tmp_path / "b", rng, error=0.5)
    done = build_bundle(folder)
    assert not done.report.passed
    checked = done.report.engines[0].validation
    assert checked.status == "failed"
    assert "relative L2" in checked.reason
    assert done.report.engines[0].benchmark.status == "done"  # how fast it is, is still of use


def test_outputs_that_are_not_finite_are_infinitely_far(tmp_path, rng, monkeypatch):
    folder = make_bundle(tmp_path / "b", rng)
    monkeypatch.setattr("tests.runtime.fake_trt.weights", lambda seed: _nan_weights())
    done = build_bundle(folder)
    metrics = done.report.engines[0].validation.metrics
    assert metrics is not None
    assert metrics.rel_l2 == math.inf
    assert read_device_report(folder / "device_report.json") == done.report


def _nan_weights():
    import numpy as np

    return np.full((3 * 4 * 6, 5), np.nan, np.float32)


def test_work_that_cannot_be_recorded_is_timed_without_a_graph_and_said_so(tmp_path, rng, trt):
    trt.capturable = False
    timed = build_bundle(make_bundle(tmp_path / "b", rng)).report.engines[0].benchmark
    assert (timed.status, timed.cuda_graph) == ("done", False)
    assert timed.reason.startswith("without a CUDA graph: ")


@pytest.mark.parametrize("fails", ["context", "enqueue"])
def test_an_engine_that_does_not_run_fails_and_what_was_built_stays(tmp_path, rng, trt, fails):
    trt.fails = fails
    folder = make_bundle(tmp_path / "b", rng)
    done = build_bundle(folder)
    engine = done.report.engines[0]
    assert engine.validation.status == "failed"
    assert engine.validation.reason
    assert engine.benchmark.status == "not run"
    assert (folder / "engine.plan").is_file()
    assert Manifest.read(folder / "manifest.json").engine is not None


def test_what_is_missing_to_run_it_reads_not_run(tmp_path, rng, monkeypatch):
    def missing(_index: int) -> None:
        raise EnvironmentMissingError("pycuda is installed and does not load", got="ImportError")

    monkeypatch.setattr("stormrt.runtime.engine._open_gpu", missing)
    done: DeviceOutcome = build_bundle(make_bundle(tmp_path / "b", rng))
    engine = done.report.engines[0]
    assert engine.validation.status == engine.benchmark.status == "not run"
    assert "does not load" in engine.validation.reason
    assert done.report.passed


# --- Refusals and interruptions ------------------------------------------------------------------


def test_another_gpu_is_refused_before_anything_is_written(tmp_path, rng, monkeypatch):
    folder = make_bundle(tmp_path / "b", rng, plugins=(PluginUse("SelectiveScan2D", "1", 4),))
    other = probe.CudaDriver("12.6", None, (probe.Gpu(0, "B", 86, 8, 8192),), None)
    monkeypatch.setattr(probe, "cuda_driver", lambda: other)
    before = content(folder)
    with pytest.raises(EnvironmentMissingError, match=r"this machine has no SM 7\.5"):
        build_bundle(folder)
    assert content(folder) == before
    assert not (folder / "plugins").exists()


def test_a_graph_that_the_gate_refused_is_not_built(tmp_path, rng):
    with pytest.raises(InputError, match="the gate refused"):
        build_bundle(make_bundle(tmp_path / "b", rng, refused="loses 3 points"))


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_file_that_has_changed_is_refused(tmp_path, rng, name):
    folder = make_bundle(tmp_path / "b", rng)
    with (folder / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="has changed since it was made"):
        build_bundle(folder)


def test_an_engine_that_the_manifest_does_not_know_is_no_obstacle(tmp_path, rng):
    # As a kill between the engine and the manifest leaves it, where engines differ between builds.
    folder = make_bundle(tmp_path / "b", rng)
    build_bundle(folder)
    (folder / "engine.plan").write_bytes(b"another one")
    assert build_bundle(folder).report.passed
    manifest = Manifest.read(folder / "manifest.json")
    assert manifest.engine is not None
    assert (folder / "engine.plan").stat().st_size == manifest.engine.file.size_bytes


def test_an_interrupted_build_leaves_the_engine_of_the_one_before(tmp_path, rng, trt):
    folder = make_bundle(tmp_path / "b", rng, int8=True)
    build_bundle(folder)
    before = content(folder)
    trt.breaks_after = len(trt.workspaces) + 1
    with pytest.raises(KeyboardInterrupt):
        build_bundle(folder)
    assert content(folder) == before
