# SPDX-License-Identifier: Apache-2.0
"""How arrays and streams of other libraries are read."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from stormrt.errors import InputError
from stormrt.runtime.arrays import LEGACY_STREAM, DeviceArray, device_array, stream_handle


def held(**entries) -> SimpleNamespace:
    told = {"shape": (2, 3, 4), "typestr": "<f4", "data": (0x1000, True), "version": 3}
    return SimpleNamespace(__cuda_array_interface__={**told, **entries})


@pytest.mark.parametrize("strides", [None, (48, 16, 4)])
def test_a_contiguous_array_is_read(strides):
    found = device_array(held(strides=strides, stream=7))
    assert found == DeviceArray(0x1000, (2, 3, 4), np.dtype(np.float32), 7)
    assert found.size_bytes == 96


def test_strides_of_single_elements_do_not_matter():
    found = device_array(held(shape=(1, 3, 1), strides=(999, 4, 5)))
    assert found is not None
    assert found.shape == (1, 3, 1)


@pytest.mark.parametrize("strides", [(96, 16, 4), (48, 4, 12), (48, 16, -4), (0, 16, 4)])
def test_an_array_that_is_not_contiguous_is_refused(strides):
    with pytest.raises(InputError, match="not contiguous") as caught:
        device_array(held(strides=strides))
    assert str(strides) in (caught.value.got or "")


def test_an_array_that_tells_no_stream_is_waited_for_on_the_default_one():
    found = device_array(held(version=2))
    assert found is not None
    assert found.stream == LEGACY_STREAM == DeviceArray(0, ()).stream


def test_a_pointer_that_says_nothing_of_what_is_there_is_refused():
    with pytest.raises(InputError, match="does not say what is there") as caught:
        device_array(SimpleNamespace(ptr=1, shape=(1,)))
    assert "without dtype" in (caught.value.got or "")


def test_what_is_in_host_memory_is_no_device_array():
    assert device_array(np.zeros(3)) is None
    assert device_array([1.0]) is None


@pytest.mark.parametrize(
    "stream",
    [
        0x99,
        SimpleNamespace(handle=0x99),
        SimpleNamespace(cuda_stream=0x99),
        SimpleNamespace(ptr=0x99),
        SimpleNamespace(__cuda_stream__=(0, 0x99)),
        SimpleNamespace(__cuda_stream__=lambda: (0, 0x99), handle=object()),
    ],
    ids=["number", "pycuda", "PyTorch", "CuPy", "cuda.core 0.1", "cuda.core"],
)
def test_streams_of_the_usual_libraries_are_known(stream):
    assert stream_handle(stream) == 0x99


@pytest.mark.parametrize("stream", ["stream", True, object()])
def test_what_is_no_stream_is_refused(stream):
    with pytest.raises(InputError, match="no CUDA stream"):
        stream_handle(stream)
