# SPDX-License-Identifier: Apache-2.0
"""``Engine`` on a GPU in host memory: what it computes, in which order, and what it gives back.

What can go wrong: results are read before the stream has made them; a graph is replayed for
another batch, or from a context that has changed since; images in device memory are read before
their owner has written them; memory is given back that work still uses, or not at all; an error
leaves half of an engine behind.
"""

from __future__ import annotations

import gc
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline import probe
from stormrt.runtime import DeviceArray, Engine
from stormrt.runtime.manifest_record import read_record
from tests.runtime.fake_device import FakeDevice
from tests.runtime.fake_trt import ITEM, model, plan_bytes
from tests.runtime.folders import write_folder

pytestmark = pytest.mark.usefixtures("trt")


def images_of(rng: np.random.Generator, batch: int) -> np.ndarray:
    return rng.normal(0, 1, (batch, *ITEM)).astype(np.float32)


@pytest.fixture
def load(tmp_path, device):
    """Loads an engine from a folder of its own; closes it when the test ends."""
    loaded = []

    def load(batch: int = 1, *, dynamic: bool = False, **options) -> Engine:
        plan = plan_bytes(batch, dynamic=dynamic)
        folder = write_folder(tmp_path / f"built{len(loaded)}", plan)
        loaded.append(Engine.load(folder, device=device, **options))
        return loaded[-1]

    yield load
    for engine in loaded:
        engine.close()


# --- What it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_an_engine_of_one_batch_gives_what_its_model_gives(load, rng, batch, cuda_graph):
    engine = load(batch, cuda_graph=cuda_graph)
    for _ in range(3):
        images = images_of(rng, batch)
        assert np.array_equal(engine.infer(images), model(images))


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engine_of_any_batch_takes_each_in_any_order(load, rng, cuda_graph):
    engine = load(4, dynamic=True, cuda_graph=cuda_graph)
    for batch in (4, 1, 3, 1, 4, 2, 2, 3):
        images = images_of(rng, batch)
        assert np.array_equal(engine.infer(images), model(images))


def test_a_batch_of_at_most_one_that_is_left_open_is_told_to_tensorrt(load, rng, device):
    images = images_of(rng, 1)
    assert np.array_equal(load(1, dynamic=True).infer(images), model(images))
    assert "set shape (1, 3, 4, 6)" in device.calls


def test_images_need_not_be_contiguous(load, rng):
    images = images_of(rng, 2)[:, :, :, ::-1]
    assert np.array_equal(load(2).infer(images), model(images))


def test_logits_stay_as_they_are_when_the_engine_goes_on_and_when_it_is_closed(load, rng):
    engine = load()
    first, images = images_of(rng, 1), images_of(rng, 1)
    logits = engine.infer(first)
    engine.infer(images)
    engine.close()
    assert np.array_equal(logits, model(first))


def test_it_says_what_it_takes_and_gives(load):
    spec = load(4, dynamic=True).spec
    assert (spec.input.name, spec.input.item_shape) == ("images", ITEM)
    assert (spec.output.name, spec.output.item_shape) == ("logits", (5,))
    assert (spec.least_batch, spec.most_batch, spec.is_dynamic) == (1, 4, True)
    assert not load(4).spec.is_dynamic


def test_a_plan_without_a_manifest_is_loaded(tmp_path, device, rng):
    plan = tmp_path / "some.plan"
    plan.write_bytes(plan_bytes(2))
    images = images_of(rng, 2)
    with Engine.load(plan, device=device) as engine:
        assert np.array_equal(engine.infer(images), model(images))


# --- In which order ------------------------------------------------------------------------------


def test_one_inference_is_a_copy_in_the_work_a_copy_out_and_one_wait(load, rng, device):
    engine = load(2)
    engine.infer(images_of(rng, 2))
    del device.calls[:]
    engine.infer(images_of(rng, 2))
    assert device.calls == ["copy in (2, 3, 4, 6)", "enqueue 2", "copy out (2, 5)", "synchronize"]


def test_the_shape_is_set_only_when_the_batch_changes(load, rng, device):
    engine = load(4, dynamic=True)
    for batch in (3, 3, 2, 2, 2):
        engine.infer(images_of(rng, batch))
    shapes = [call for call in device.calls if call.startswith("set shape")]
    assert shapes == ["set shape (3, 3, 4, 6)", "set shape (2, 3, 4, 6)"]


def test_a_graph_is_recorded_once_a_batch_after_a_run_and_then_replayed(load, rng, device):
    engine = load(2, cuda_graph=True)
    del device.calls[:]
    engine.infer(images_of(rng, 2))
    copy_in, copy_out = "copy in (2, 3, 4, 6)", "copy out (2, 5)"
    recording = ["create context STATIC", "enqueue 2", "synchronize", "capture", "enqueue 2"]
    replay = ["launch graph", copy_out, "synchronize"]
    assert device.calls == [copy_in, *recording, *replay]
    for _ in range(3):
        del device.calls[:]
        engine.infer(images_of(rng, 2))
        assert device.calls == [copy_in, *replay]


def test_each_graph_has_a_context_of_its_own_and_all_have_one_memory(load, rng, trt):
    engine = load(4, dynamic=True, cuda_graph=True)
    for batch in (1, 3, 4, 3, 1):
        engine.infer(images_of(rng, batch))
    assert [context.batch for context in trt.contexts] == [1, 3, 4]
    assert len({context.memory for context in trt.contexts}) == 1
    assert trt.contexts[0].memory is not None


def test_without_graphs_one_context_serves_every_batch(load, rng, trt):
    engine = load(4, dynamic=True)
    for batch in (1, 3, 4):
        engine.infer(images_of(rng, batch))
    assert len(trt.contexts) == 1
    assert trt.contexts[0].memory is None  # its own


def test_a_stream_of_the_application_is_worked_on_and_left_alone(load, rng, device):
    theirs = SimpleNamespace(cuda_stream=0x77)
    engine = load(stream=theirs)
    assert engine.stream == 0x77
    images = images_of(rng, 1)
    assert np.array_equal(engine.infer(images), model(images))
    assert [stream.is_own for stream in device.streams.values()] == [False]


def test_threads_take_turns(load, rng):
    engine = load(4, dynamic=True, cuda_graph=True)
    inputs = [images_of(rng, 1 + index % 4) for index in range(24)]
    outputs: dict[int, np.ndarray] = {}

    def work(offset: int) -> None:
        for index in range(offset, len(inputs), 4):
            outputs[index] = engine.infer(inputs[index])

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == list(range(len(inputs)))
    for index, images in enumerate(inputs):
        assert np.array_equal(outputs[index], model(images))


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_runs_are_timed_one_by_one_without_copies(load, device, cuda_graph):
    engine = load(4, dynamic=True, cuda_graph=cuda_graph)
    # The fake's clock goes on by a millisecond for each image.
    assert engine.time_runs(5).tolist() == [4.0] * 5
    assert engine.time_runs(3, batch=2).tolist() == [2.0] * 3
    assert not [call for call in device.calls if call.startswith("copy")]
    with pytest.raises(InputError, match="no batch of that size"):
        engine.time_runs(1, batch=5)


# --- Images in device memory ---------------------------------------------------------------------


def interface(device: FakeDevice, images: np.ndarray, **entries) -> SimpleNamespace:
    told = {"shape": images.shape, "typestr": "<f4", "data": (device.put(images), False)}
    return SimpleNamespace(__cuda_array_interface__={**told, **entries})


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_images_in_device_memory_are_copied_there_once_their_stream_is_done(
    load, rng, device, cuda_graph
):
    engine = load(4, dynamic=True, cuda_graph=cuda_graph)
    for batch in (2, 4, 2):
        images = images_of(rng, batch)
        del device.calls[:]
        logits = engine.infer(interface(device, images, version=3, stream=0x55))
        assert np.array_equal(logits, model(images))
        assert device.calls[:2] == ["wait for 85", f"copy {images.nbytes}"]
        assert not [call for call in device.calls if call.startswith("copy in")]


@pytest.mark.parametrize(
    ("entries", "waits"),
    [
        ({"version": 2}, ["wait for 1"]),  # PyTorch's: made on the default stream unless told
        ({"version": 3, "stream": None}, []),
        ({"version": 3, "stream": 2}, ["wait for 2"]),
    ],
)
def test_which_stream_is_waited_for_follows_the_interface(load, rng, device, entries, waits):
    engine = load()
    engine.infer(interface(device, images_of(rng, 1), **entries))
    assert [call for call in device.calls if call.startswith("wait")] == waits


def test_bare_pointers_and_objects_with_one_are_taken(load, rng, device):
    engine, images = load(2), images_of(rng, 2)
    pointer = device.put(images)
    held = SimpleNamespace(ptr=pointer, shape=images.shape, dtype=images.dtype)
    for given in (DeviceArray(pointer, images.shape), held):
        assert np.array_equal(engine.infer(given), model(images))


# --- What it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "what", "got", "expected"),
    [
        (np.zeros((2, 3, 4, 5), "f4"), "shape", "(2, 3, 4, 5)", "[B, 3, 4, 6]"),
        (np.zeros((3, 4, 6), "f4"), "shape", "(3, 4, 6)", "[B, 3, 4, 6]"),
        (np.zeros((2, 3, 4, 6), "u1"), "type", "uint8", "float32"),
        (np.zeros((2, 3, 4, 6)), "type", "float64", "float32"),
        (np.zeros((3, 3, 4, 6), "f4"), "batch", "3", "2"),
        (np.zeros((0, 3, 4, 6), "f4"), "batch", "0", "2"),
        (DeviceArray(1, (2, 3, 4, 6), np.float16), "type", "float16", "float32"),
        (DeviceArray(1, (1, 3, 4, 6)), "batch", "1", "2"),
        ([[0.0]], "no images", "list", "NumPy array"),
    ],
)
def test_images_that_do_not_fit_are_refused_before_anything_is_enqueued(
    load, device, images, what, got, expected
):
    engine = load(2)
    del device.calls[:]
    with pytest.raises(InputError) as caught:
        engine.infer(images)
    assert what in caught.value.what
    assert caught.value.got is not None
    assert got in caught.value.got
    assert caught.value.expected is not None
    assert expected in caught.value.expected
    assert device.calls == []


def test_the_batches_of_an_open_engine_are_told(load):
    engine = load(4, dynamic=True)
    with pytest.raises(InputError) as caught:
        engine.infer(np.zeros((5, *ITEM), "f4"))
    assert (caught.value.got, caught.value.expected) == ("5", "1 to 4")


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (plan_bytes(type="HALF"), "not FP32"),
        (plan_bytes(names=["images", "more", "logits"]), "none of a classifier"),
        (plan_bytes(item=[3, -1, 6]), "not fixed but for the batch"),
        (b"no plan", "TensorRT does not take the engine"),
    ],
)
def test_an_engine_of_another_kind_is_refused(tmp_path, device, plan, what):
    with pytest.raises(InputError, match=what) as caught:
        Engine.load(write_folder(tmp_path / "built", plan), device=device)
    assert caught.value.got


def test_tensorrts_own_reason_for_refusing_a_plan_is_told(tmp_path, device):
    with pytest.raises(InputError, match="Magic tag does not match") as caught:
        Engine.load(write_folder(tmp_path / "built", b"no plan"), device=device)
    assert f"stormrt build {tmp_path}/built" in (caught.value.fix or "")


def test_a_closed_engine_is_refused(load, rng):
    engine = load()
    engine.close()
    engine.close()
    for call in (lambda: engine.infer(images_of(rng, 1)), lambda: engine.time_runs(1)):
        with pytest.raises(InputError, match="the engine is closed"):
            call()


@pytest.mark.parametrize("stream", [0, 1])
def test_a_graph_on_the_default_stream_is_refused_before_anything_is_loaded(load, device, stream):
    with pytest.raises(InputError, match="no graph on the default stream"):
        load(cuda_graph=True, stream=stream)
    assert device.calls == []


def test_work_that_cannot_be_recorded_is_told_with_the_way_round_it(load, rng, trt):
    trt.capturable = False
    engine = load(cuda_graph=True)
    with pytest.raises(InputError, match="could not be recorded") as caught:
        engine.infer(images_of(rng, 1))
    assert caught.value.fix == "load the engine with cuda_graph=False"
    trt.capturable = True
    images = images_of(rng, 1)
    assert np.array_equal(load(cuda_graph=True).infer(images), model(images))


def test_a_failed_recording_is_told_with_the_way_round_it(load, rng, trt, monkeypatch, device):
    engine = load(cuda_graph=True)

    def fail(_work):
        raise InputError("CUDA failed in cuStreamEndCapture", got="CUDA_ERROR_UNKNOWN")

    (stream,) = device.streams.values()
    monkeypatch.setattr(stream, "capture", fail)
    with pytest.raises(InputError, match="CUDA_ERROR_UNKNOWN") as caught:
        engine.infer(images_of(rng, 1))
    assert "cuda_graph=False" in (caught.value.fix or "")


def test_tensorrts_reason_for_a_failed_run_is_told(load, rng, trt):
    engine = load()
    trt.fails = "enqueue"
    with pytest.raises(InputError, match="an illegal memory access was encountered"):
        engine.infer(images_of(rng, 1))


def test_a_failed_run_leaves_nothing_on_the_stream_and_the_engine_usable(load, rng, trt, device):
    engine = load()
    trt.fails = "enqueue"
    with pytest.raises(InputError):
        engine.infer(interface(device, images_of(rng, 1)))
    assert device.idle()
    trt.fails = None
    images = images_of(rng, 1)
    assert np.array_equal(engine.infer(images), model(images))


@pytest.mark.parametrize("part", ["shape", "address", "context"])
def test_a_call_that_tensorrt_refuses_is_an_error(load, rng, trt, part):
    engine = load(2, dynamic=True)
    trt.fails = part
    with pytest.raises(InputError, match="TensorRT"):
        engine.infer(images_of(rng, 1))


# --- What it gives back --------------------------------------------------------------------------


def reservations(device: FakeDevice, load) -> int:
    """How many things an engine reserves, graphs included."""
    with load(2, dynamic=True, cuda_graph=True) as engine:
        engine.infer(np.zeros((2, *ITEM), "f4"))
        count = len(device.live)
    assert device.live == set()
    return count


@pytest.mark.parametrize("index", range(7))
def test_whatever_finds_no_room_nothing_is_left_behind(load, device, index):
    # Stream, activations, two tensors of two memories each, the graph.
    assert reservations(device, load) == 7
    device.fail_at = device.reserved + index
    with (
        pytest.raises(InputError, match="no room"),
        load(2, dynamic=True, cuda_graph=True) as engine,
    ):
        engine.infer(np.zeros((2, *ITEM), "f4"))
    assert device.reserved == device.fail_at + 1
    assert device.live == set()
    assert device.memory == {}


def test_an_engine_that_is_dropped_gives_everything_back(tmp_path, device):
    engine = Engine.load(write_folder(tmp_path / "built"), device=device)
    assert device.live
    del engine
    gc.collect()
    assert device.live == set()


def test_the_stream_is_waited_for_before_anything_is_given_back(load, device):
    engine = load(2)
    engine.infer(np.zeros((2, *ITEM), "f4"))
    (stream,) = device.streams.values()
    done = []
    stream.add(lambda: done.append("late work"))
    engine.close()  # the fakes refuse memory that pending work uses
    assert done == ["late work"]


# --- The GPU of this machine ---------------------------------------------------------------------


def test_without_a_gpu_that_is_said_before_anything_is_imported(tmp_path, monkeypatch):
    nothing = probe.CudaDriver(None, None, (), "no CUDA driver on this machine")
    monkeypatch.setattr(probe, "cuda_driver", lambda: nothing)
    with pytest.raises(EnvironmentMissingError, match="no CUDA driver on this machine"):
        Engine.load(write_folder(tmp_path / "built"))


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch):
    one = probe.CudaDriver("12.6", None, (probe.Gpu(0, "A GPU", 75, 8, 8192),), None)
    monkeypatch.setattr(probe, "cuda_driver", lambda: one)
    with pytest.raises(EnvironmentMissingError, match="no such GPU") as caught:
        Engine.load(write_folder(tmp_path / "built"), device=1)
    assert (caught.value.got, caught.value.expected) == ("device 1", "0 to 0")


# --- TensorRT-RTX's cache of compiled kernels ----------------------------------------------------


class RuntimeCache:
    """An ``IRuntimeCache``."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, data: bytes) -> bool:
        self.content = data
        return True

    def serialize(self) -> np.ndarray:
        return np.frombuffer(self.content + b"kernel;", np.uint8)


def as_rtx(trt, monkeypatch) -> list[RuntimeCache]:
    """Make the fake TensorRT a TensorRT-RTX; return the caches that contexts are made with."""
    used: list[RuntimeCache] = []

    class Config:
        def create_runtime_cache(self) -> RuntimeCache:
            return RuntimeCache()

        def set_runtime_cache(self, cache: RuntimeCache) -> bool:
            used.append(cache)
            return True

        def set_execution_context_allocation_strategy(self, strategy) -> None:
            self.strategy = strategy

    plain = trt.Runtime

    def runtime(logger):
        made = plain(logger)
        load = made.deserialize_cuda_engine

        def deserialize(plan: bytes):
            engine = load(plan)
            create = engine.create_execution_context
            engine.create_runtime_config = Config
            engine.create_execution_context = lambda config: create(config.strategy)
            return engine

        made.deserialize_cuda_engine = deserialize
        return made

    trt.Runtime = runtime
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    return used


def test_kernels_that_tensorrt_rtx_compiles_are_kept_for_the_next_process(
    tmp_path, device, trt, rng, monkeypatch
):
    used = as_rtx(trt, monkeypatch)
    folder = write_folder(tmp_path / "built", plan_bytes(3, dynamic=True), runtime="tensorrt_rtx")
    record = replace(read_record(folder), runtime_cache=tmp_path / "kernels")
    for loads in (1, 2):
        with Engine.open(record, device=device, cuda_graph=True) as engine:
            for batch in (1, 3):  # a context each
                images = images_of(rng, batch)
                assert np.array_equal(engine.infer(images), model(images))
        assert (tmp_path / "kernels").read_bytes() == b"kernel;" * loads
    assert used[0] is used[1]
    assert used[2].content == b"kernel;"
    assert len(used) == 4


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path, device, trt, rng, monkeypatch):
    as_rtx(trt, monkeypatch)
    folder = write_folder(tmp_path / "built", runtime="tensorrt_rtx")
    record = replace(read_record(folder), runtime_cache=folder / "engine.plan" / "kernels")
    with Engine.open(record, device=device) as engine:
        assert engine.infer(images_of(rng, 1)).shape == (1, 5)
