# SPDX-License-Identifier: Apache-2.0
"""``engine.hpp`` on a GPU: its memory, streams, copies and graphs are CUDA's own.

TensorRT is the imitation of ``cpp/fake_tensorrt.cpp``, whose engine copies on the GPU the first
numbers of each image; what that sees of CUDA is real, the state of a recording too.
"""

from __future__ import annotations

import pytest

from stormrt.pipeline.probe import cuda_driver
from tests.helpers.native import require_toolchain
from tests.runtime.cpp_host import compile_program, run_program

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_driver().reason is not None, reason=str(cuda_driver().reason)),
]

SANE = "live 0"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    tools, out = require_toolchain(), tmp_path_factory.mktemp("gpu_program")
    return compile_program(tools, tools.headers.folder, out, real_cuda=True)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "engine.plan"
    path.write_text("4 1 3 17 33")  # batches of 1 to 4
    return path


@pytest.mark.parametrize("stream", ["own", "theirs"])
@pytest.mark.parametrize("graph", [0, 1])
def test_host_and_device_memory_give_what_the_engine_gives(program, plan, graph, stream):
    steps = [f"{what}={n}" for n in (4, 1, 3, 1, 4) for what in ("infer", "enqueue")]
    options = ["--graph", graph, *(("--stream", "theirs") if stream == "theirs" else ())]
    answer = run_program(program, plan, *options, *steps)
    assert answer.lines == [f"{step.partition('=')[0]} right" for step in steps]
    assert answer.end == SANE


def test_graphs_are_replayed_not_enqueued_again(program, plan):
    answer = run_program(program, plan, "--graph", 1, "infer=2", "calls", *["infer=2"] * 5, "calls")
    first = answer.lines.index("infer right", 1)
    # TensorRT is called by the first inference, twice, and by no later one.
    assert sum("enqueueV3" in line for line in answer.lines[:first]) == 2
    assert not any("enqueueV3" in line for line in answer.lines[first:])
    assert answer.end == SANE


def test_an_engine_of_another_gpu_is_refused_by_the_gpu_that_is_here(program, plan):
    sm = cuda_driver().gpus[0].sm
    assert run_program(program, plan, "--sm", sm, "infer=1").lines == ["infer right"]
    error = run_program(program, plan, "--sm", sm + 1).error
    assert error["problem"] == "the engine is for another GPU"
    assert error["got"] == f"SM {sm // 10}.{sm % 10}"


@pytest.mark.parametrize("graph", [0, 1])
def test_an_engine_is_usable_after_work_that_failed(program, plan, graph):
    steps = ["infer=2", "fail=enqueueV3", "infer=3", "fail=", "infer=3", "enqueue=2"]
    answer = run_program(program, plan, "--graph", graph, *steps)
    assert answer.lines[0] == "infer right"
    assert answer.error["problem"]
    assert answer.lines[-2:] == ["infer right", "enqueue right"]
    assert answer.end == SANE


def test_memory_that_the_gpu_does_not_have_is_an_error(program, tmp_path):
    path = tmp_path / "engine.plan"
    path.write_text("4096 1 3 65536 8192")  # 24 TiB
    error = run_program(program, path).error
    assert "memory" in error["problem"] + error["got"]
