# SPDX-License-Identifier: Apache-2.0
"""What can run a model here, and that a graph made for it is the one that a build makes."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline import predictors
from stormrt.pipeline.model_source import build_model
from stormrt.pipeline.predictors import Executor, choose_executor, open_predictor
from stormrt.pipeline.probe import CudaDriver, Gpu
from stormrt.targets import load_target
from tests.pipeline.support import digest, model_spec, relative, run_onnx, run_torch


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU and the packages that may run engines on it."""

    def put(sm=75, *, runs=("tensorrt", "tensorrt_rtx")):
        found = Gpu(0, "a GPU", sm, 40, 16_384)
        monkeypatch.setattr(
            predictors, "cuda_driver", lambda: CudaDriver("13", "580", (found,), None)
        )
        monkeypatch.setattr(
            predictors,
            "engine_run_blocker",
            lambda name, _sm: None if name in runs else f"{name} is not installed",
        )

    return put


class TestChoice:
    def test_torch_and_onnxruntime_need_nothing(self):
        assert choose_executor("torch", "fp16") == Executor("torch", "fp16")
        assert choose_executor("onnxruntime", "fp32") == Executor("onnxruntime", "fp32")

    @pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "tensorrt"])
    def test_int8_without_a_calibration_is_refused(self, runtime):
        with pytest.raises(InputError, match="calibration"):
            choose_executor(runtime, "int8")

    def test_int8_is_no_precision_of_pytorch_and_of_no_other_a_calibration(self, tmp_path):
        assert choose_executor("onnxruntime", "int8", None, tmp_path).int8.calibration == tmp_path
        with pytest.raises(InputError, match="PyTorch does not run"):
            choose_executor("torch", "int8", None, tmp_path)
        with pytest.raises(InputError, match="a calibration is for INT8 and FP16"):
            choose_executor("onnxruntime", "fp32", None, tmp_path)

    def test_fp16_may_have_a_calibration_where_a_graph_is_made(self, tmp_path):
        assert choose_executor("onnxruntime", "fp16", None, tmp_path).int8.calibration == tmp_path
        with pytest.raises(InputError, match="PyTorch runs the model itself"):
            choose_executor("torch", "fp16", None, tmp_path)

    def test_a_recipe_is_for_engines_alone(self):
        with pytest.raises(InputError, match="onnxruntime runs none"):
            choose_executor("onnxruntime", "fp32", "t4")

    def test_without_a_driver_an_engine_is_refused_with_the_way_out(self, monkeypatch):
        driver = CudaDriver(None, None, (), "no CUDA driver on this machine")
        monkeypatch.setattr(predictors, "cuda_driver", lambda: driver)
        for target in (None, "t4"):
            with pytest.raises(EnvironmentMissingError, match="no CUDA driver") as refusal:
                choose_executor("tensorrt", "fp16", target)
            assert "--runtime onnxruntime" in str(refusal.value)

    def test_the_recipe_is_found_by_the_gpu_and_the_runtime_by_what_is_installed(self, gpu):
        gpu()
        assert choose_executor("tensorrt", "fp16") == Executor(
            "tensorrt", "fp16", load_target("t4")
        )
        gpu(runs=("tensorrt_rtx",))
        assert choose_executor("tensorrt", "fp16", "t4").runtime == "tensorrt_rtx"
        gpu(runs=())
        with pytest.raises(EnvironmentMissingError, match="tensorrt_rtx is not installed"):
            choose_executor("tensorrt", "fp16")

    def test_a_gpu_without_a_recipe_and_a_recipe_of_another_gpu_are_refused(self, gpu):
        gpu(90)
        with pytest.raises(EnvironmentMissingError, match="no recipe for this machine's GPU"):
            choose_executor("tensorrt", "fp16")
        with pytest.raises(EnvironmentMissingError, match="another GPU"):
            choose_executor("tensorrt", "fp16", "t4")


class TestTorch:
    def test_fp32_is_the_frozen_model_and_fp16_its_half(self, tmp_path, rng):
        spec = model_spec(height=32, width=48, batch=3)
        images = rng.standard_normal((2, 3, 32, 48), np.float32)
        with open_predictor(spec, Executor("torch", "fp32"), tmp_path) as predict:
            whole = predict(images)
        with open_predictor(spec, Executor("torch", "fp16"), tmp_path) as predict:
            half = predict(images)
        assert whole.dtype == half.dtype == np.float32
        assert relative(whole, run_torch(spec, images)) < 1e-5
        with torch.inference_mode():
            model = build_model(spec).to_fp16()
            expected = model(torch.from_numpy(images).half()).float().numpy()
        np.testing.assert_array_equal(half, expected)
        assert not np.array_equal(half, whole)
        assert not list(tmp_path.iterdir())


class TestOnnxruntime:
    def test_what_runs_is_the_builds_native_graph_and_is_made_once(self, tmp_path, rng, reduced):
        spec, images = reduced.spec, rng.standard_normal((1, 3, 64, 48), np.float32)
        seen = []

        def watch(stage, status, _seconds):
            seen.append((stage, status))

        for expected in ("run", "skipped"):
            seen.clear()
            executor = Executor("onnxruntime", "fp16")
            with open_predictor(spec, executor, tmp_path, watch) as predict:
                found = predict(images)
            assert dict(seen) == dict.fromkeys(("export", "precision", "lower"), expected)
            np.testing.assert_array_equal(found, run_onnx(reduced.native_fp16, images))
        before = digest(tmp_path / "exported.onnx")
        seen.clear()
        with open_predictor(spec, Executor("onnxruntime", "fp32"), tmp_path, watch):
            pass
        assert ("export", "skipped") in seen
        assert ("lower", "run") in seen
        assert digest(tmp_path / "exported.onnx") == before

    def test_a_batch_that_is_not_full_gives_as_many_logits_as_images(self):
        calls = []

        def run(images):
            calls.append(images)
            return images.sum((1, 2, 3))[:, None]

        predict = predictors._in_full_batches(run, 3)
        images = np.arange(2, dtype=np.float32).reshape(2, 1, 1, 1)
        np.testing.assert_array_equal(predict(images), [[0], [1]])
        np.testing.assert_array_equal(calls[0].ravel(), [0, 1, 1])
        np.testing.assert_array_equal(predict(np.ones((3, 1, 1, 1), np.float32)), [[1], [1], [1]])


@pytest.mark.parametrize(
    ("runtime", "graph", "plugins"), [("tensorrt", "plugin", 1), ("tensorrt_rtx", "native", 0)]
)
def test_an_engine_is_built_from_the_graph_that_its_runtime_takes_and_run_with_its_plugins(
    tmp_path, rng, monkeypatch, reduced, runtime, graph, plugins
):
    """Builder and runner are stand-ins: there is no GPU. The rest is as on a board."""
    spec, did = reduced.spec, []

    def build_engine(onnx_path, *, runtime, target, out, plugin_libraries):
        did.append(("built", onnx_path.name, runtime, target.id, len(plugin_libraries)))
        out.write_bytes(b"engine")
        return SimpleNamespace(
            sha256=digest(out), size_bytes=6, runtime=runtime, runtime_version="1", sm=75
        )

    @contextmanager
    def open_engine(plan, runtime, plugin_libraries):
        did.append(("opened", plan.name, runtime, len(plugin_libraries)))
        yield lambda images: run_onnx(reduced.native_fp16, images)

    library = SimpleNamespace(core=tmp_path / "lib.so")
    library.core.write_bytes(b"library")
    monkeypatch.setattr("stormrt.pipeline.engine.build_engine", build_engine)
    monkeypatch.setattr("stormrt.pipeline.engine_runner.open_engine", open_engine)
    monkeypatch.setattr("stormrt.pipeline.device.plugins.build_library", lambda *_: library)
    monkeypatch.delenv("STORMRT_PLUGIN_LIB", raising=False)
    images = rng.standard_normal((1, 3, 64, 48), np.float32)
    executor = Executor(runtime, "fp16", load_target("t4"))
    for _ in range(2):
        with open_predictor(spec, executor, tmp_path / "work") as predict:
            np.testing.assert_array_equal(predict(images), run_onnx(reduced.native_fp16, images))
    opened = ("opened", "engine.plan", runtime, plugins)
    assert did == [("built", f"{graph}.onnx", runtime, "t4", plugins), opened, opened]
