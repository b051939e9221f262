# SPDX-License-Identifier: Apache-2.0
"""``engine.hpp``: compiled against TensorRT's headers, run with imitations of TensorRT and CUDA.

What can go wrong: what goes wrong in Python's Engine, and: memory is freed before the work that
uses it is done, or in an order that TensorRT does not survive; a program is run with a TensorRT
of another major version than it was compiled for, whose registry it would crash in.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from stormrt.pipeline.probe import cuda_driver
from stormrt.plugins.toolchain import Toolchain
from stormrt.runtime import CPP_INCLUDE
from tests.helpers.native import LEAN_VERSIONS, headers_of_11, lean_library, require_toolchain
from tests.runtime.cpp_host import WARNINGS, Answer, compile_program, run_program

ITEM = "3 4 6"
IN, OUT = 3 * 4 * 6 * 4, 5 * 4
"""Bytes of an image and of its logits."""


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    return require_toolchain()


@pytest.fixture(scope="session")
def program(tools, tmp_path_factory) -> Path:
    return compile_program(tools, tools.headers.folder, tmp_path_factory.mktemp("program"))


@pytest.fixture
def plan(tmp_path):
    """Writes a plan of the imitated TensorRT."""

    def plan(batch: int = 2, *, is_open: bool = False, kind: str = "") -> Path:
        path = tmp_path / "engine.plan"
        path.write_text(f"{batch} {int(is_open)} {ITEM} {kind}")
        return path

    return plan


@pytest.fixture
def run(program):
    def run(*arguments: object) -> Answer:
        answer = run_program(program, *arguments)
        assert answer.end == "live 0", answer
        return answer

    return run


# --- What it computes, and in which order --------------------------------------------------------


@pytest.mark.parametrize("graph", [0, 1])
def test_host_and_device_memory_give_what_the_engine_gives(run, plan, graph):
    steps = ["infer=2", "enqueue=2", "infer=2"]
    answer = run(plan(), "--graph", graph, *steps)
    assert answer.lines == ["infer right", "enqueue right", "infer right"]
    answer = run(plan(4, is_open=True), "--graph", graph, *[f"infer={n}" for n in (4, 1, 3, 1, 4)])
    assert answer.lines == ["infer right"] * 5


def test_one_inference_is_a_copy_in_the_work_a_copy_out_and_one_wait(run, plan):
    answer = run(plan(), "infer=2", "calls", "infer=2", "calls")
    assert answer.lines[-5:] == [
        "infer right",
        f"  cudaMemcpyAsync in {2 * IN}",
        "  enqueueV3 2",
        f"  cudaMemcpyAsync out {2 * OUT}",
        "  cudaStreamSynchronize",
    ]


def test_device_memory_waits_for_its_stream_and_for_nothing_else(run, plan):
    answer = run(plan(), "enqueue=2", "calls", "enqueue=2", "calls")
    calls = answer.lines[answer.lines.index("enqueue right", 1) + 1 :]
    first = calls.index("  cudaEventRecord")
    assert calls[first : first + 5] == [
        "  cudaEventRecord",
        "  cudaStreamWaitEvent",
        f"  cudaMemcpyAsync device {2 * IN}",
        "  enqueueV3 2",
        f"  cudaMemcpyAsync device {2 * OUT}",
    ]


def test_a_graph_is_recorded_once_a_batch_after_a_run_and_then_replayed(run, plan):
    answer = run(plan(), "--graph", 1, "calls", "infer=2", "calls", "infer=2", "calls")
    first = answer.lines.index("infer right")
    second = answer.lines.index("infer right", first + 1)
    assert answer.lines[first + 1 : second] == [
        f"  cudaMemcpyAsync in {2 * IN}",
        "  createExecutionContext STATIC",
        "  setTensorAddress images",
        "  setTensorAddress logits",
        "  enqueueV3 2",
        "  cudaStreamSynchronize",
        "  cudaStreamBeginCapture 1",
        "  enqueueV3 2",
        "  cudaStreamEndCapture",
        "  cudaGraphInstantiateWithFlags",
        "  cudaGraphLaunch",
        f"  cudaMemcpyAsync out {2 * OUT}",
        "  cudaStreamSynchronize",
    ]
    assert answer.lines[second + 1 :] == [
        f"  cudaMemcpyAsync in {2 * IN}",
        "  cudaGraphLaunch",
        f"  cudaMemcpyAsync out {2 * OUT}",
        "  cudaStreamSynchronize",
    ]


def test_each_graph_has_a_context_of_its_own_and_all_have_one_memory(run, plan):
    batches = (1, 3, 4, 3, 1)
    answer = run(plan(4, is_open=True), "--graph", 1, *[f"infer={n}" for n in batches], "calls")
    calls = [line.strip() for line in answer.lines]
    assert calls.count("createExecutionContext USER_MANAGED") == 3
    assert calls.count("setDeviceMemoryV2 512") == 3
    assert calls.count("cudaMalloc 512") == 1
    shapes = [call for call in calls if call.startswith("setInputShape")]
    assert shapes == ["setInputShape 1", "setInputShape 3", "setInputShape 4"]


def test_without_graphs_one_context_serves_every_batch(run, plan):
    answer = run(plan(4, is_open=True), *[f"infer={n}" for n in (1, 3, 3, 4)], "calls")
    calls = [line.strip() for line in answer.lines]
    assert calls.count("createExecutionContext STATIC") == 1
    shapes = [call for call in calls if call.startswith("setInputShape")]
    assert shapes == ["setInputShape 1", "setInputShape 3", "setInputShape 4"]


def test_plugin_libraries_are_registered_first_and_once(run, plan, tmp_path):
    library = tmp_path / "libstormrt_plugins.so"
    library.write_bytes(b"a library")
    again = tmp_path / "again.so"
    again.symlink_to(library)
    answer = run(plan(), "--plugin", library, "--plugin", again, "calls")
    calls = [line.strip() for line in answer.lines]
    # Each by its real name.
    assert [c for c in calls if c.startswith("load")] == ["loadLibrary libstormrt_plugins.so"]
    order = [calls.index(c) for c in ("loadLibrary libstormrt_plugins.so", "createInferRuntime")]
    assert order == sorted(order)
    assert calls.index("createInferRuntime") < calls.index("deserializeCudaEngine")


def test_it_closes_after_the_work_and_in_the_order_that_tensorrt_needs(run, plan):
    answer = run(plan(), "infer=2", "calls")
    closing = ["cudaStreamSynchronize", "~IExecutionContext", "~ICudaEngine", "~IRuntime"]
    assert answer.after == [*closing, "cudaStreamDestroy"]
    # Work that nobody has waited for.
    answer = run(plan(), "fail=cudaStreamSynchronize", "infer=2")
    assert answer.error["problem"] == "CUDA failed in cudaStreamSynchronize"


def test_a_stream_of_the_application_is_left_alone(run, plan):
    answer = run(plan(), "--stream", "theirs", "infer=2", "calls")
    assert answer.lines[0] == "infer right"
    assert answer.lines.count("  cudaStreamCreateWithFlags 1") == 1  # the program's own
    assert answer.after[-1] == "cudaStreamDestroy"
    assert answer.after.count("cudaStreamDestroy") == 1


def test_it_says_what_it_takes(run, plan):
    assert run(plan(4, is_open=True), "describe").lines == ["images -> logits, 1 to 4"]


# --- What it refuses -----------------------------------------------------------------------------


def refusal(answer: Answer) -> dict[str, str]:
    """The refusal of an engine; TensorRT has not seen the plan then."""
    assert "deserializeCudaEngine" not in answer.after
    return answer.error


def test_an_engine_for_another_gpu_is_refused(run, plan):
    error = refusal(run(plan(), "--sm", 87))
    assert error["problem"] == "the engine is for another GPU"
    assert (error["got"], error["expected"]) == ("SM 7.5", "SM 8.7")
    assert "stormrt build" in error["fix"]
    assert run(plan(), "--sm", 75, "infer=2").lines == ["infer right"]


@pytest.mark.parametrize("version", ["10.3.0", "10.14.10", "10.1", "11.14.1"])
def test_an_engine_of_another_version_is_refused(run, plan, version):
    error = refusal(run(plan(), "--version", version))
    assert error["problem"] == "the engine was built by another version of TensorRT"
    assert (error["got"], error["expected"]) == ("TensorRT 10.14.1", f"TensorRT {version}")
    assert "stormrt build" in error["fix"]


@pytest.mark.parametrize("version", ["10.14.1", "10.14.1.48"])
def test_the_version_that_built_it_is_taken(run, plan, version):
    assert run(plan(), "--version", version, "infer=2").lines == ["infer right"]


def test_a_library_of_another_major_version_is_refused_before_anything_is_called(run, plan):
    answer = run(plan(), "--library", 110400)
    error = refusal(answer)
    assert error["problem"] == "the program was compiled for another TensorRT"
    assert (error["got"], error["expected"]) == ("TensorRT 11.4.0", "TensorRT 10")
    assert answer.after == []


def test_a_plan_that_has_changed_is_refused(run, plan):
    path = plan()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run(path, "--sha256", digest, "infer=2").lines == ["infer right"]
    error = refusal(run(path, "--sha256", "0" * 64))
    assert error["problem"] == "the engine is not the one that the manifest describes"
    assert error["got"].endswith(f"SHA-256 {digest}")
    assert error["expected"] == f"SHA-256 {'0' * 64}"


def test_another_plugin_library_is_refused(run, plan, tmp_path):
    library = tmp_path / "libstormrt_plugins.so"
    library.write_bytes(b"rebuilt since")
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    error = refusal(run(plan(), "--plugin", f"{library}={'0' * 64}"))
    assert error["problem"] == "the engine was built with another plugin library"
    assert error["got"].endswith(f"SHA-256 {digest}")
    assert run(plan(), "--plugin", f"{library}={digest}", "infer=2").lines == ["infer right"]


def test_files_that_are_missing_are_refused(run, plan, tmp_path):
    for arguments in ((tmp_path / "gone.plan",), (plan(), "--plugin", tmp_path / "gone.so")):
        error = refusal(run(*arguments))
        assert error["problem"] == "a file is missing"
        assert str(tmp_path / "gone") in error["got"]


def test_a_graph_on_the_default_stream_is_refused(run, plan):
    error = refusal(run(plan(), "--graph", 1, "--stream", "legacy"))
    assert error["problem"] == "CUDA records no graph on the default stream"


@pytest.mark.parametrize("step", ["infer=0", "infer=1", "infer=3", "enqueue=1"])
def test_batches_that_do_not_fit_are_refused(run, plan, step):
    error = run(plan(), step).error
    assert error["problem"] == "the engine takes no batch of that size"
    assert (error["got"], error["expected"]) == (step[-1], "2")
    error = run(plan(4, is_open=True), "infer=5").error
    assert (error["got"], error["expected"]) == ("5", "1 to 4")


@pytest.mark.parametrize(
    ("kind", "problem"), [("half", "not FP32"), ("two", "none of a classifier")]
)
def test_an_engine_of_another_kind_is_refused(run, plan, kind, problem):
    assert problem in run(plan(kind=kind)).error["problem"]


def test_tensorrts_own_reason_is_told(run, tmp_path):
    path = tmp_path / "engine.plan"
    path.write_text("no plan")
    answer = run(path)
    assert "TensorRT does not take the engine" in answer.error["problem"]
    assert answer.error["got"] == "Error Code 1: Serialization (Magic tag does not match)"
    assert "log Error Code 1: Serialization (Magic tag does not match)" in answer.after


CUDA_CALLS = (
    "cudaGetDevice",
    "cudaStreamCreateWithFlags",
    "cudaMallocHost",
    "cudaMalloc",
    "cudaMemcpyAsync",
    "cudaStreamSynchronize",
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiateWithFlags",
    "cudaGraphLaunch",
    "cudaEventCreateWithFlags",
    "cudaEventRecord",
    "cudaStreamWaitEvent",
)
TENSORRT_CALLS = (
    "createInferRuntime",
    "loadLibrary",
    "createExecutionContext",
    "setTensorAddress",
    "setInputShape",
    "enqueueV3",
)


@pytest.mark.parametrize("call", [*CUDA_CALLS, *TENSORRT_CALLS])
def test_whatever_fails_is_told_and_nothing_is_left_behind(run, plan, tmp_path, call):
    library = tmp_path / "libstormrt_plugins.so"
    library.write_bytes(b"a library")
    options = ["--graph", 1, "--plugin", library, "--fail", call]
    error = run(plan(4, is_open=True), *options, "enqueue=3", "infer=2").error
    assert error["problem"]
    if call in CUDA_CALLS:
        assert "cuda" in error["problem"] + error["got"]
        recorded = call in ("cudaStreamEndCapture", "cudaGraphInstantiateWithFlags")
        assert ("recorded as a CUDA graph" in error["problem"]) is recorded
    else:
        assert error["problem"].startswith("TensorRT ")
        assert error["got"]


@pytest.mark.parametrize(
    "call",
    ["enqueueV3@1", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags", "cudaGraphLaunch"],
)
def test_an_engine_is_usable_after_a_recording_that_failed(run, plan, call):
    answer = run(plan(), "--graph", 1, "--fail", call, "infer=2", "fail=", "infer=2")
    assert answer.lines[0].startswith("problem: ")
    assert answer.lines[-1] == "infer right"


# --- Headers and libraries -----------------------------------------------------------------------


MAIN = """
#include <cstdio>
#include <stormrt/engine.hpp>
int main() {
    try {
        stormrt::Engine engine("engine.plan");
    } catch (stormrt::Error const& error) {
        std::puts(error.what());
    }
}
"""


def compile_main(tools: Toolchain, headers: Path, folder: Path, *options: str) -> Path:
    """A program that an application would write, compiled without a warning."""
    source, out = folder / "main.cpp", folder / "main.o"
    source.write_text(MAIN)
    command = [tools.nvcc, f"-ccbin={tools.host_compiler}", "-std=c++17", "-I", CPP_INCLUDE]
    command += [f"-Xcompiler={','.join([WARNINGS, *options])}", "-isystem", headers]
    done = subprocess.run(
        [*command, "-c", source, "-o", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def main_object(tools, tmp_path_factory) -> Path:
    return compile_main(tools, tools.headers.folder, tmp_path_factory.mktemp("main"), "-Wpedantic")


def test_it_compiles_against_the_headers_of_tensorrt_11(tools, tmp_path):
    if tools.headers.version[0] != 10:
        pytest.skip("the headers of 11 are made from those of 10")
    headers = headers_of_11(tools.headers.folder, tmp_path / "headers")
    compile_main(tools, headers, tmp_path, "-fsyntax-only")


def test_two_files_of_one_program_may_include_it(main_object):
    done = subprocess.run(
        ["nm", "-C", "--defined-only", main_object], capture_output=True, text=True, check=True
    )
    ours = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines() if "stormrt::" in line]
    assert len(ours) > 50
    # A strong symbol would be defined twice.
    assert [name for kind, name in ours if kind in "TDBR"] == []


def test_its_digest_is_that_of_every_length(tools, tmp_path):
    source = tmp_path / "digest.cpp"
    source.write_text(
        "#include <cstdio>\n#include <stormrt/sha256.hpp>\n"
        "int main(int n, char** a) {\n"
        "    for (int i = 1; i < n; ++i) std::puts(stormrt::detail::sha256File(a[i]).c_str());\n"
        "}\n"
    )
    out = tmp_path / "digest"
    command = [tools.host_compiler, "-std=c++17", "-I", CPP_INCLUDE, source, "-o", out]
    subprocess.run(command, check=True)
    sizes = [0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 1000, 65535, 65536, 65537, 300000]
    paths = [tmp_path / str(size) for size in sizes]
    for size, path in zip(sizes, paths, strict=True):
        path.write_bytes(bytes(i * 7 % 251 for i in range(size)))
    printed = subprocess.run([out, *paths, "/nowhere"], capture_output=True, text=True, check=True)
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert printed.stdout.split("\n") == [*expected, "", ""]


@pytest.mark.skipif(cuda_driver().reason is None, reason="there is a GPU: the plan is the next")
@pytest.mark.parametrize("version", LEAN_VERSIONS)
def test_a_program_linked_with_a_real_runtime_says_that_there_is_no_gpu(
    tools, main_object, tmp_path, version
):
    library = lean_library(version)
    out = tmp_path / "main"
    link = [f"-Xlinker={library}", f"-Xlinker=-rpath,{library.parent}"]
    subprocess.run([tools.nvcc, main_object, "-o", out, *link], check=True)
    done = subprocess.run([out], capture_output=True, text=True, check=True)
    if int(version.split(".")[0]) == tools.headers.version[0]:
        assert done.stdout.startswith("CUDA failed in cudaGetDevice")
    else:
        assert done.stdout.startswith("the program was compiled for another TensorRT")
        assert "got: TensorRT 11.4.0" in done.stdout
