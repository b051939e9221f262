# SPDX-License-Identifier: Apache-2.0
"""Streams and graphs through the CUDA driver, on a driver in host memory.

What can go wrong: an address is cut to 32 bits; a failed recording leaves the stream recording;
graphs and events are not given back; CUDA's error is told without its name.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.runtime import driver, driver_device
from stormrt.runtime.driver import SIGNATURES, DriverStream
from tests.helpers.native import require_toolchain

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory) -> Path:
    tools = require_toolchain()
    out = tmp_path_factory.mktemp("libcuda") / "libcuda.so.1"
    flags = "-Xcompiler=-fPIC,-Wall,-Wextra,-Werror"
    source = HERE / "fake_libcuda.cpp"
    command = [tools.nvcc, "-std=c++17", "-shared", flags, source, "-o", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def cuda(fake_library, monkeypatch):
    """The fake driver in the place of the real one."""
    monkeypatch.setattr(driver, "LIBRARY", str(fake_library))
    driver._library.cache_clear()
    library = ctypes.CDLL(str(fake_library))
    library.fakeLog.restype = ctypes.c_char_p
    library.fakeStream.restype = ctypes.c_void_p
    library.fakeReset()
    live = library.fakeLive()

    def calls() -> list[str]:
        return library.fakeLog().decode().split("\n")[:-1]

    def fail(name: str, status: int) -> None:
        library.fakeFail(name.encode(), status)

    yield SimpleNamespace(
        calls=calls,
        fail=fail,
        reset=library.fakeReset,
        is_recording=lambda: bool(library.fakeIsRecording()),
        live=lambda: library.fakeLive() - live,
        stream=DriverStream(library.fakeStream()),
    )
    assert library.fakeLive() == live, "something was not given back"
    driver._library.cache_clear()


def pointer(array: np.ndarray) -> int:
    return array.ctypes.data


def test_copies_move_what_they_should(cuda, rng):
    images = rng.normal(size=(2, 3, 5)).astype(np.float32)
    one, two, back = np.zeros_like(images), np.zeros_like(images), np.zeros_like(images)
    assert pointer(one) > 2**32  # as on a device: more than an int holds
    cuda.stream.copy_in(pointer(one), images)
    cuda.stream.copy(pointer(two), pointer(one), images.nbytes)
    cuda.stream.copy_out(back, pointer(two))
    cuda.stream.synchronize()
    assert np.array_equal(back, images)
    copies = ["cuMemcpyHtoDAsync 120", "cuMemcpyDtoDAsync 120", "cuMemcpyDtoHAsync 120"]
    assert cuda.calls() == [*copies, "cuStreamSynchronize"]


def test_recorded_work_runs_at_each_launch_and_not_before(cuda):
    source, to = np.zeros(3, np.float32), np.zeros(3, np.float32)
    size = source.nbytes
    graph = cuda.stream.capture(lambda: cuda.stream.copy(pointer(to), pointer(source), size))
    source[:] = 1
    assert to.tolist() == [0, 0, 0]
    graph.launch()
    assert to.tolist() == [1, 1, 1]
    source[:] = 2
    graph.launch()
    assert to.tolist() == [2, 2, 2]
    graph.free()
    assert cuda.calls() == [
        "cuStreamBeginCapture 1",  # other threads may go on
        "cuMemcpyDtoDAsync 12",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags 0",
        "cuGraphDestroy",
        "cuGraphLaunch",
        "cuGraphLaunch",
        "cuGraphExecDestroy",
    ]


def test_an_error_while_recording_ends_it_and_is_the_one_that_is_told(cuda):
    def work() -> None:
        raise KeyError("of the work")

    with pytest.raises(KeyError, match="of the work"):
        cuda.stream.capture(work)
    assert not cuda.is_recording()
    assert cuda.live() == 0


@pytest.mark.parametrize(
    "name", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
def test_a_recording_that_cuda_refuses_leaves_nothing_behind(cuda, name):
    cuda.fail(name, 901)
    with pytest.raises(InputError, match=rf"CUDA failed in {name}"):
        cuda.stream.capture(lambda: None)
    assert not cuda.is_recording()
    assert cuda.live() == 0
    cuda.reset()
    cuda.stream.capture(lambda: None).free()


def test_another_stream_is_waited_for_through_one_event(cuda):
    own = cuda.stream.handle
    cuda.stream.wait_for(own)
    assert cuda.calls() == []
    cuda.stream.wait_for(2)
    cuda.stream.wait_for(1)
    waits = ["cuEventRecord other", "cuStreamWaitEvent 0"]
    assert cuda.calls() == ["cuEventCreate 2", *waits, *waits]
    cuda.stream.close()
    assert cuda.live() == 0
    assert cuda.stream.handle == own


def test_time_passes_between_events(cuda):
    array = np.zeros(1, np.float32)
    start = cuda.stream.event()
    cuda.stream.copy_in(pointer(array), array)
    end = cuda.stream.event()
    assert end.ms_since(start) == 2.0
    assert "cuEventSynchronize" in cuda.calls()
    start.free()
    end.free()


def test_cudas_errors_are_told_by_name(cuda):
    cuda.fail("cuStreamSynchronize", 2)
    with pytest.raises(InputError, match="CUDA failed in cuStreamSynchronize") as caught:
        cuda.stream.synchronize()
    assert caught.value.got == "CUDA_ERROR_OUT_OF_MEMORY: out of memory"
    assert caught.value.fix == "close other programs that use the GPU"
    cuda.fail("cuStreamSynchronize", 777)
    with pytest.raises(InputError) as caught:
        cuda.stream.synchronize()
    assert caught.value.got == "error 777: error 777"


def test_without_a_driver_that_is_said(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libcuda_that_is_not_there.so.1")
    driver._library.cache_clear()
    with pytest.raises(EnvironmentMissingError, match="no CUDA driver on this machine"):
        DriverStream(1).synchronize()


def test_every_function_that_is_declared_is_called_somewhere():
    source = Path(driver.__file__).read_text()
    declared, used = source.split("@cache", 1)
    used += Path(driver_device.__file__).read_text()
    for name in SIGNATURES:
        assert f'"{name}"' in declared
        assert name in used, name
    called: Callable[[str], list[str]] = re.compile(r'"(cu[A-Z]\w+)"').findall
    assert set(called(used)) <= set(SIGNATURES)
