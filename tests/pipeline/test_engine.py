# SPDX-License-Identifier: Apache-2.0
"""The builder: what it builds, what it refuses, and what it leaves behind when it fails.

What can go wrong: a plan for another GPU than the target's, half a file under the final name after
a crash, a Ctrl-C that the library swallows, an error that names no node, messages of the library
on the user's terminal. TensorRT-RTX builds T4 engines for real here, on the CPU. Full TensorRT
cannot be had without its GPU: its side of the builder runs against TensorRT-RTX's module under
the other name, or against a small imitation where TensorRT-RTX cannot do it.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("onnx", reason="onnx is not installed: the test graphs are made with it")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline import engine, engine_api, probe
from stormrt.pipeline.engine import EngineBuildResult, build_engine
from stormrt.pipeline.engine_config import use_timing_cache
from stormrt.targets import Target, dump_target, load_target, parse_target

ELEMENT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
NUMPY_TYPES = {"fp32": np.float32, "fp16": np.float16}

needs_rtx = pytest.mark.skipif(
    probe.installed_version("tensorrt-rtx") is None,
    reason="tensorrt_rtx is not installed: no engine can be built",
)


def save(
    path: Path, nodes: list[onnx.NodeProto], *, width: int | str = 16, element: int = 1
) -> Path:
    """A graph of `nodes` from x [1, 3, 16, width] to y of the same shape."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, [1, 3, 16, width])],
        [helper.make_tensor_value_info("y", element, [1, 3, 16, width])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("stormrt", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def conv_relu(path: Path, precision: str = "fp16") -> Path:
    """Conv 3x3 and ReLU: x [1, 3, 16, 16] -> y [1, 8, 16, 16]."""
    element = ELEMENT_TYPES[precision]
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(NUMPY_TYPES[precision])
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        "g",
        [helper.make_tensor_value_info("x", element, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", element, [1, 8, 16, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def fp32_matmul(path: Path) -> Path:
    """x [4, 32] times a constant [32, 8], in FP32."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(np.ones((32, 8), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def target_like(name: str, **device: object) -> Target:
    """A packaged target with some of its device's keys changed."""
    data = dump_target(load_target(name))
    table = data["device"]
    assert isinstance(table, dict)
    table.update(device)
    return parse_target(data, origin="test")


def build_t4(onnx_path: Path, out: Path, **arguments: object) -> EngineBuildResult:
    return build_engine(
        onnx_path,
        runtime="tensorrt_rtx",
        target=load_target("t4"),
        out=out,
        **arguments,  # type: ignore[arg-type]  # a test's own choice of the remaining arguments
    )


def driver_with(sm: int | None) -> probe.CudaDriver:
    if sm is None:
        return probe.CudaDriver(None, None, (), "no CUDA driver on this machine")
    return probe.CudaDriver("12.6", None, (probe.Gpu(0, "A GPU", sm, 8, 8192),), None)


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_t4_engine_is_built_without_a_gpu(tmp_path: Path, precision: str) -> None:
    out = tmp_path / "new folder" / "m.plan"
    result = build_t4(conv_relu(tmp_path / "m.onnx", precision), out)
    content = out.read_bytes()
    assert result.plan == out
    assert result.size_bytes == len(content) > 1000
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert result.runtime == "tensorrt_rtx"
    assert result.runtime_version.startswith("1.")
    assert result.sm == 75
    assert result.build_seconds > 0
    dtype = {"fp32": "float", "fp16": "half"}[precision]
    assert result.inputs == (engine.TensorInfo("x", (1, 3, 16, 16), dtype),)
    assert result.outputs == (engine.TensorInfo("y", (1, 8, 16, 16), dtype),)
    assert len(result.layers) >= 1
    assert "conv" in "".join(result.layers)
    assert [path.name for path in out.parent.iterdir()] == ["m.plan"]


@needs_rtx
@pytest.mark.parametrize("sm", [80, 86, 89, 120])
def test_the_other_gpus_of_tensorrt_rtx_are_built_for_too(tmp_path: Path, sm: int) -> None:
    result = build_engine(
        conv_relu(tmp_path / "m.onnx"),
        runtime="tensorrt_rtx",
        target=target_like("t4", sm=sm),
        out=tmp_path / "m.plan",
    )
    assert result.sm == sm


@needs_rtx
def test_the_same_graph_gives_the_same_bytes_in_one_process_and_in_another(
    tmp_path: Path,
) -> None:
    path = conv_relu(tmp_path / "m.onnx")
    first = build_t4(path, tmp_path / "a.plan").sha256
    assert build_t4(path, tmp_path / "b.plan").sha256 == first
    script = (
        "import sys; from pathlib import Path\n"
        "from stormrt.pipeline.engine import build_engine\n"
        "from stormrt.targets import load_target\n"
        "print(build_engine(Path(sys.argv[1]), runtime='tensorrt_rtx', target=load_target('t4'),"
        " out=Path(sys.argv[2])).sha256)"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(path), str(tmp_path / "c.plan")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert other.stdout.strip() == first


@needs_rtx
def test_the_library_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build_t4(conv_relu(tmp_path / "m.onnx"), tmp_path / "m.plan")
    with pytest.raises(InputError):
        build_t4(fp32_matmul(tmp_path / "f.onnx"), tmp_path / "f.plan")
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_progress_is_told_in_steps_of_named_phases(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    build_t4(
        conv_relu(tmp_path / "m.onnx"),
        tmp_path / "m.plan",
        progress=lambda phase, done, total: calls.append((phase, done, total)),
    )
    assert calls[0][1] == 0
    assert len({phase for phase, _, _ in calls}) > 1
    assert all(0 <= done <= total for _, done, total in calls)
    outermost = [call for call in calls if call[0] == calls[0][0]]
    assert outermost[-1][1] == outermost[-1][2]


@needs_rtx
def test_a_corrupt_onnx_file_is_rejected_and_named(tmp_path: Path) -> None:
    path = tmp_path / "corrupt.onnx"
    path.write_bytes(conv_relu(tmp_path / "m.onnx").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot parse[\s\S]*corrupt\.onnx[\s\S]*Failed to parse"):
        build_t4(path, tmp_path / "m.plan")


@needs_rtx
def test_an_empty_onnx_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    with pytest.raises(InputError, match="the graph has no outputs"):
        build_t4(path, tmp_path / "m.plan")


@needs_rtx
def test_every_unknown_op_is_named_with_its_node_and_what_to_do(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("SelectiveScan2D", ["x"], ["a"], name="scan0", domain="stormrt"),
            helper.make_node("NoSuchOp", ["a"], ["y"]),
        ],
    )
    with pytest.raises(InputError) as caught:
        build_t4(path, tmp_path / "m.plan")
    message = str(caught.value)
    assert "node 'scan0' (SelectiveScan2D): Plugin not found" in message
    assert "(NoSuchOp): Plugin not found" in message
    assert "native lowering" in message


@needs_rtx
def test_a_free_dimension_is_rejected_by_the_inputs_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, width="W")
    with pytest.raises(InputError, match=r"input 'x'[\s\S]*\(1, 3, 16, -1\)"):
        build_t4(path, tmp_path / "m.plan")


@needs_rtx
def test_a_graph_that_the_gpu_cannot_run_is_rejected_with_node_reason_and_remedy(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError) as caught:
        build_t4(fp32_matmul(tmp_path / "m.onnx"), tmp_path / "m.plan")
    message = str(caught.value)
    assert "cannot build the graph for t4" in message
    assert "'product'" in message
    assert "FP32 GEMM is not supported" in message
    assert "--precision fp16" in message
    assert not (tmp_path / "m.plan").exists()


@needs_rtx
def test_a_plan_of_an_earlier_build_survives_a_failed_one(tmp_path: Path) -> None:
    out = tmp_path / "m.plan"
    out.write_bytes(b"earlier")
    with pytest.raises(InputError):
        build_t4(fp32_matmul(tmp_path / "m.onnx"), out)
    assert out.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.plan"]


@needs_rtx
def test_a_plan_of_an_earlier_build_is_replaced_by_a_good_one(tmp_path: Path) -> None:
    out = tmp_path / "m.plan"
    out.write_bytes(b"earlier")
    result = build_t4(conv_relu(tmp_path / "m.onnx"), out)
    assert out.stat().st_size == result.size_bytes


@needs_rtx
def test_ctrl_c_cancels_the_build_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[int] = []

    def interrupt(_phase: str, done: int, _total: int) -> None:
        steps.append(done)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_t4(conv_relu(tmp_path / "m.onnx"), tmp_path / "m.plan", progress=interrupt)
    assert len(steps) < 15
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_an_applications_own_handler_of_ctrl_c_stays(tmp_path: Path) -> None:
    def own(_number: int, _frame: object) -> None:
        return None

    before = signal.signal(signal.SIGINT, own)
    try:
        build_t4(conv_relu(tmp_path / "m.onnx"), tmp_path / "m.plan")
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


@needs_rtx
def test_an_error_in_the_progress_callback_cancels_the_build_and_comes_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_phase: str, _done: int, _total: int) -> None:
        raise ZeroDivisionError("from the callback")

    with pytest.raises(ZeroDivisionError, match="from the callback"):
        build_t4(conv_relu(tmp_path / "m.onnx"), tmp_path / "m.plan", progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_builds_after_a_cancelled_one_work(tmp_path: Path) -> None:
    def cancel(_phase: str, _done: int, _total: int) -> None:
        raise KeyboardInterrupt

    path = conv_relu(tmp_path / "m.onnx")
    with pytest.raises(KeyboardInterrupt):
        build_t4(path, tmp_path / "m.plan", progress=cancel)
    assert build_t4(path, tmp_path / "m.plan").size_bytes > 0


@needs_rtx
def test_two_threads_build_at_the_same_time_without_mixing_their_messages(tmp_path: Path) -> None:
    good = conv_relu(tmp_path / "good.onnx")
    bad = fp32_matmul(tmp_path / "bad.onnx")
    outcomes: dict[str, object] = {}

    def work(path: Path) -> None:
        try:
            outcomes[path.stem] = build_t4(path, tmp_path / f"{path.stem}.plan")
        except InputError as error:
            outcomes[path.stem] = error

    threads = [threading.Thread(target=work, args=(path,)) for path in (good, bad)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(outcomes["good"], EngineBuildResult)
    assert "product" in str(outcomes["bad"])


@needs_rtx
def test_a_killed_build_leaves_no_plan(tmp_path: Path) -> None:
    path = conv_relu(tmp_path / "m.onnx")
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from stormrt.pipeline import files\n"
        "from stormrt.pipeline.engine import build_engine\n"
        "from stormrt.targets import load_target\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build_engine(Path(sys.argv[1]), runtime='tensorrt_rtx', target=load_target('t4'),"
        " out=Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(tmp_path / "m.plan")],
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "m.plan").exists()


@needs_rtx
def test_an_sm_that_this_tensorrt_rtx_has_not_is_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing for SM 9\.0[\s\S]*75, 80, 86, 89, 120"):
        build_engine(
            conv_relu(tmp_path / "m.onnx"),
            runtime="tensorrt_rtx",
            target=target_like("t4", sm=90),
            out=tmp_path / "m.plan",
        )


@needs_rtx
def test_a_version_that_the_recipe_excludes_is_refused(tmp_path: Path) -> None:
    data = dump_target(load_target("t4"))
    runtimes = data["runtime"]
    assert isinstance(runtimes, list)
    runtimes[1]["version"] = ">=99"
    with pytest.raises(EnvironmentMissingError, match=r"not supported on t4[\s\S]*>=99"):
        build_engine(
            conv_relu(tmp_path / "m.onnx"),
            runtime="tensorrt_rtx",
            target=parse_target(data, origin="test"),
            out=tmp_path / "m.plan",
        )


def test_orin_is_refused_by_tensorrt_rtx_with_what_to_do_instead(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no Orin[\s\S]*--runtime tensorrt") as caught:
        build_engine(
            tmp_path / "m.onnx",
            runtime="tensorrt_rtx",
            target=load_target("orin-nano-8g"),
            out=tmp_path / "m.plan",
        )
    assert caught.value.exit_code == 2


def test_plugins_are_refused_by_tensorrt_rtx(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"runs no plugins[\s\S]*native lowering"):
        build_t4(tmp_path / "m.onnx", tmp_path / "m.plan", plugin_libraries=[Path("a.so")])


def test_a_timing_cache_is_refused_by_tensorrt_rtx(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="timing cache"):
        build_t4(tmp_path / "m.onnx", tmp_path / "m.plan", timing_cache=tmp_path / "cache")


def test_a_missing_onnx_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such ONNX file[\s\S]*nowhere\.onnx"):
        build_t4(tmp_path / "nowhere.onnx", tmp_path / "m.plan")


def test_a_folder_is_no_name_for_a_plan(tmp_path: Path) -> None:
    path = conv_relu(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="the plan's name is a folder"):
        build_t4(path, tmp_path)


def test_a_plan_below_a_file_is_refused_before_the_build(tmp_path: Path) -> None:
    path = conv_relu(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx"):
        build_t4(path, path / "m.plan")


@pytest.mark.parametrize(
    ("sm", "says"), [(None, "no CUDA driver on this machine"), (90, r"A GPU, SM 9\.0")]
)
def test_tensorrt_is_refused_where_the_gpu_is_not_the_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sm: int | None, says: str
) -> None:
    monkeypatch.setattr(probe, "cuda_driver", lambda: driver_with(sm))
    with pytest.raises(EnvironmentMissingError, match=says) as caught:
        build_engine(
            conv_relu(tmp_path / "m.onnx"),
            runtime="tensorrt",
            target=load_target("orin-nx-16g"),
            out=tmp_path / "m.plan",
        )
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "SM 8.7" in message
    assert f"run there: stormrt build {tmp_path}" in message


def test_the_callers_own_command_for_the_board_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "cuda_driver", lambda: driver_with(None))
    with pytest.raises(EnvironmentMissingError, match="run there: stormrt build bundle/"):
        build_engine(
            conv_relu(tmp_path / "m.onnx"),
            runtime="tensorrt",
            target=load_target("t4"),
            out=tmp_path / "m.plan",
            board_command="stormrt build bundle/",
        )


@pytest.mark.skipif(
    probe.installed_version("tensorrt") is not None, reason="tensorrt is installed here"
)
def test_a_missing_package_is_answered_with_how_to_install_it() -> None:
    with pytest.raises(EnvironmentMissingError, match=r"not installed[\s\S]*python3-libnvinfer"):
        engine_api.load_api("tensorrt")


def test_a_package_that_does_not_load_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvdla_compiler.so: not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EnvironmentMissingError, match=r"does not load[\s\S]*libnvdla_compiler"):
        engine_api.load_api("tensorrt")


def as_tensorrt(monkeypatch: pytest.MonkeyPatch, **changes: object) -> ModuleType:
    """TensorRT-RTX's module, with some names changed, in the place of TensorRT's, on a T4."""
    original = engine_api.load_api("tensorrt_rtx")
    module = ModuleType("tensorrt")
    for name in dir(original):
        setattr(module, name, getattr(original, name))
    module.__name__ = "tensorrt"
    module.__dict__.update({"__version__": "10.3.0"} | changes)
    monkeypatch.setattr(engine_api, "load_api", lambda _runtime: module)
    monkeypatch.setattr(probe, "cuda_driver", lambda: driver_with(75))
    # The library has one logger per process: the one that it knows already must be found again.
    with engine_api.captured_log(original) as (logger, _):
        pair = next(pair for pair in engine_api._loggers.values() if pair[0] is logger)
    monkeypatch.setitem(engine_api._loggers, "tensorrt", pair)
    return module


def build_as_tensorrt(folder: Path, **arguments: object) -> EngineBuildResult:
    return build_engine(
        conv_relu(folder / "m.onnx"),
        runtime="tensorrt",
        target=load_target("t4"),
        out=folder / "m.plan",
        **arguments,  # type: ignore[arg-type]  # a test's own choice of the remaining arguments
    )


@needs_rtx
def test_the_same_builder_serves_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_tensorrt(monkeypatch)
    result = build_as_tensorrt(tmp_path)
    assert (result.runtime, result.runtime_version, result.sm) == ("tensorrt", "10.3.0", 75)
    assert result.size_bytes == (tmp_path / "m.plan").stat().st_size


@needs_rtx
def test_a_release_without_the_flag_for_strong_typing_is_built_with_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_tensorrt(
        monkeypatch,
        NetworkDefinitionCreationFlag=SimpleNamespace(__members__={}),
        BuilderFlag=SimpleNamespace(__members__={}),
    )
    assert build_as_tensorrt(tmp_path).size_bytes > 0


@needs_rtx
def test_a_graph_with_an_unknown_plugin_is_told_to_load_the_library_on_tensorrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_tensorrt(monkeypatch)
    node = helper.make_node("SelectiveScan2D", ["x"], ["y"], name="scan0", domain="stormrt")
    path = save(tmp_path / "m.onnx", [node])
    with pytest.raises(InputError, match=r"scan0[\s\S]*build the plugin library"):
        build_engine(path, runtime="tensorrt", target=load_target("t4"), out=tmp_path / "m.plan")


class FakeRegistry:
    """A plugin registry that accepts or refuses every library."""

    def __init__(self, handle: object | None) -> None:
        self.handle = handle
        self.loaded: list[str] = []

    def load_library(self, path: str) -> object | None:
        self.loaded.append(path)
        return self.handle


@needs_rtx
def test_a_plugin_library_is_loaded_once_per_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = FakeRegistry(object())
    as_tensorrt(monkeypatch, get_plugin_registry=lambda: registry)
    library = tmp_path / "libplugins.so"
    library.touch()
    for _ in range(2):
        build_as_tensorrt(tmp_path, plugin_libraries=[library])
    assert registry.loaded == [str(library)]


@needs_rtx
def test_a_plugin_library_that_tensorrt_refuses_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_tensorrt(monkeypatch, get_plugin_registry=lambda: FakeRegistry(None))
    library = tmp_path / "libplugins.so"
    library.touch()
    with pytest.raises(InputError, match=r"does not load the plugin library[\s\S]*libplugins\.so"):
        build_as_tensorrt(tmp_path, plugin_libraries=[library])


@needs_rtx
def test_a_missing_plugin_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_tensorrt(monkeypatch)
    with pytest.raises(InputError, match=r"does not exist[\s\S]*nowhere\.so"):
        build_as_tensorrt(tmp_path, plugin_libraries=[tmp_path / "nowhere.so"])


class FakeConfig:
    """A builder config that knows timing caches of one content, and notes what it was given."""

    def __init__(self, accepted: set[bytes]) -> None:
        self.accepted = accepted
        self.used: list[bytes] = []

    def create_timing_cache(self, serialized: bytes) -> bytes:
        return serialized

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache in self.accepted:
            self.used.append(cache)
        return cache in self.accepted


@pytest.mark.parametrize(
    ("stored", "accepted", "used", "notes"),
    [
        (None, {b""}, [b""], 0),
        (b"mine", {b"", b"mine"}, [b"mine"], 0),
        (b"of another GPU", {b""}, [b""], 1),
        (b"mine", set(), [], 2),
    ],
)
def test_a_timing_cache_of_another_gpu_costs_time_and_not_the_build(
    tmp_path: Path, stored: bytes | None, accepted: set[bytes], used: list[bytes], notes: int
) -> None:
    path = tmp_path / "cache"
    if stored is not None:
        path.write_bytes(stored)
    config = FakeConfig(accepted)
    told: list[str] = []
    use: Callable[..., object] = use_timing_cache  # which a fake is given
    use(config, path, told)
    assert config.used == used
    assert len(told) == notes


@needs_rtx
def test_a_timing_cache_is_written_after_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_tensorrt(monkeypatch)
    monkeypatch.setattr(
        engine,
        "use_timing_cache",
        lambda *_: (SimpleNamespace(serialize=lambda: b"timings"), True),
    )
    result = build_as_tensorrt(tmp_path, timing_cache=tmp_path / "cache")
    assert result.timing_cache == "reused"
    assert (tmp_path / "cache").read_bytes() == b"timings"


def test_importing_the_builder_loads_nothing_heavy() -> None:
    script = (
        "import sys, stormrt.pipeline.engine, stormrt.pipeline.doctor\n"
        "print(sorted({'tensorrt', 'tensorrt_rtx', 'torch', 'onnx', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"
