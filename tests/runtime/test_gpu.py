# SPDX-License-Identifier: Apache-2.0
"""The runner on a GPU, with the plugin library's scan, in the plugin host, as its engine.

Memory, page-locked memory, streams, copies, graphs, the plugin and its kernel are real; TensorRT
is not there. What can go wrong: an address or a handle is cut or mixed up on its way to the driver;
a graph replays on old inputs; work of the runner and of PyTorch overlap; contexts get in each
other's way. Run it with pycuda installed too.
"""

from __future__ import annotations

import sys
import threading
from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")

# Imported only where the packages above are: these import them.
from stormrt.errors import InputError  # noqa: E402
from stormrt.pipeline import engine_api  # noqa: E402
from stormrt.pipeline.device.timing import CALLS, benchmark_engine  # noqa: E402
from stormrt.pipeline.probe import cuda_driver  # noqa: E402
from stormrt.plugins.builder import build_library  # noqa: E402
from stormrt.plugins.selective_scan_2d import SPEC  # noqa: E402
from stormrt.plugins.selective_scan_2d.torch_op import selective_scan_2d  # noqa: E402
from stormrt.runtime import DeviceArray, Engine  # noqa: E402
from stormrt.runtime.driver_device import DriverDevice  # noqa: E402
from tests.helpers.native import TOOLS, require_toolchain  # noqa: E402
from tests.helpers.plugin_host import Extents, HostedPlugin, PluginHost, Session  # noqa: E402
from tests.helpers.scans import MAPS, relative_l2, scan_inputs  # noqa: E402
from tests.helpers.scans import images as some_images  # noqa: E402
from tests.helpers.seeds import generator  # noqa: E402
from tests.runtime.plugin_trt import PluginTensorRT  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA GPU here"),
]

MAP = (12, 28, 28)
MOST = 4
LIMIT = 1e-5
"""Relative L2 of FP32: the order of sums."""
HAS_PYCUDA = find_spec("pycuda") is not None


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> HostedPlugin:
    """The scan's plugin as an engine holds it, for FP32 and batches of 1 to MOST."""
    tools = require_toolchain()
    sm = cuda_driver().gpus[0].sm
    built = build_library(TOOLS / "plugins-gpu", (sm,), toolchain=tools)
    host = PluginHost(tools, tmp_path_factory.mktemp("plugin_host"))
    return host.open(built.core, SPEC, tensors_of(1, MOST))


@pytest.fixture
def scan(plugin, rng):
    """The scan with all of its inputs fixed but x."""
    return Scan(plugin, rng)


def tensors_of(least: int, most: int) -> list[Extents]:
    """The scan's inputs and its output for some batches."""
    shapes = {k: tuple(v.shape) for k, v in scan_inputs(generator("shapes"), (*MAP, 1)).items()}
    names = [*(t.name for t in SPEC.inputs), "x"]
    return [
        Extents(
            "float32",
            *((n, *shapes[name][1:]) if name in MAPS else shapes[name] for n in (least, most)),
        )
        for name in names
    ]


class Scan:
    def __init__(self, plugin: HostedPlugin, rng: np.random.Generator) -> None:
        self._plugin = plugin
        self._fixed = scan_inputs(rng, (*MAP, 1), batch=MOST)
        self._on_gpu = [self._fixed[t.name].cuda() for t in SPEC.inputs[1:]]
        torch.cuda.synchronize()

    def attach(self) -> ScanInContext:
        """The scan of one execution context."""
        return ScanInContext(self._plugin.attach(), [t.data_ptr() for t in self._on_gpu])

    def expected(self, x: np.ndarray) -> torch.Tensor:
        """PyTorch's own operations, in float64, on the CPU."""
        named = some_images(self._fixed, slice(len(x))) | {"x": torch.from_numpy(x)}
        return selective_scan_2d(*(named[t.name].double() for t in SPEC.inputs))

    def assert_close(self, y: np.ndarray, x: np.ndarray) -> None:
        assert relative_l2(torch.from_numpy(y), self.expected(x)) < LIMIT


class ScanInContext:
    """Works on the first images of the fixed inputs."""

    def __init__(self, session: Session, fixed: list[int]) -> None:
        self._session = session
        self._fixed = fixed

    def set_batch(self, batch: int) -> None:
        self._session.set_shapes(tensors_of(batch, batch))

    def enqueue(self, x: int, y: int, stream: int) -> bool:
        return self._session.enqueue([x, *self._fixed, y], stream)


def images_of(rng: np.random.Generator, batch: int = MOST) -> np.ndarray:
    return rng.normal(size=(batch, *MAP)).astype(np.float32)


@pytest.fixture(
    params=[
        pytest.param(
            "pycuda", marks=pytest.mark.skipif(not HAS_PYCUDA, reason="pycuda is not installed")
        ),
        "driver",
    ]
)
def device(request):
    torch.cuda.init()
    if request.param == "driver":
        return DriverDevice()
    from stormrt.runtime.pycuda_device import PycudaDevice

    return PycudaDevice()


@pytest.fixture
def load(scan, device, monkeypatch, tmp_path):
    """Loads an engine that is the scan; closes it when the test ends."""
    api = PluginTensorRT(MAP, MOST, scan.attach)
    monkeypatch.setitem(sys.modules, "tensorrt", api)
    monkeypatch.setattr(engine_api, "_loggers", {})
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"the scan")
    loaded = []

    def load(**options) -> Engine:
        loaded.append(Engine.load(plan, device=device, **options))
        return loaded[-1]

    load.api = api
    yield load
    for engine in loaded:
        engine.close()
    torch.cuda.synchronize()  # an error of a kernel belongs to the test that launched it


# --- The layer below -----------------------------------------------------------------------------


def test_memory_copies_and_the_kernel_on_a_stream_give_what_pytorch_gives(scan, device, rng):
    images = images_of(rng)
    with device.active():
        stream = device.stream()
        work = scan.attach()
        work.set_batch(MOST)
        host_in, host_out = device.pinned(images.shape), device.pinned(images.shape)
        x, y, z = (device.allocate(images.nbytes) for _ in range(3))
        assert all(buffer.ptr % 256 == 0 for buffer in (x, y, z))
        host_in.array[:] = images
        host_out.array.fill(np.nan)
        stream.copy_in(x.ptr, host_in.array)
        assert work.enqueue(x.ptr, y.ptr, stream.handle)
        stream.copy(z.ptr, y.ptr, images.nbytes)
        stream.copy_out(host_out.array, z.ptr)
        stream.synchronize()
        result = host_out.array.copy()
        for part in (host_in, host_out, x, y, z):
            part.free()
        stream.close()
    scan.assert_close(result, images)


def test_a_graph_of_the_kernel_replays_on_new_inputs(scan, device, rng):
    with device.active():
        stream = device.stream()
        x, y = (device.allocate(MOST * int(np.prod(MAP)) * 4) for _ in range(2))
        result = device.pinned((MOST, *MAP))
        work = scan.attach()
        work.set_batch(MOST)
        assert work.enqueue(x.ptr, y.ptr, stream.handle)
        stream.synchronize()
        recorded = []
        graph = stream.capture(lambda: recorded.append(work.enqueue(x.ptr, y.ptr, stream.handle)))
        assert recorded == [True]
        for _ in range(3):
            images = images_of(rng)
            stream.copy_in(x.ptr, images)
            graph.launch()
            stream.copy_out(result.array, y.ptr)
            stream.synchronize()
            scan.assert_close(result.array, images)
        graph.free()
        for part in (x, y, result):
            part.free()
        stream.close()


def test_a_stream_is_usable_after_a_recording_that_failed(scan, device, rng):
    with device.active():
        stream = device.stream()
        buffer = device.allocate(64)

        def work() -> None:
            stream.copy(buffer.ptr, buffer.ptr + 32, 32)
            raise KeyError

        with pytest.raises(KeyError):
            stream.capture(work)
        with pytest.raises(InputError, match="CUDA_ERROR"):
            stream.capture(stream.synchronize)  # which CUDA cannot record
        graph = stream.capture(lambda: stream.copy(buffer.ptr, buffer.ptr + 32, 32))
        graph.launch()
        stream.synchronize()
        graph.free()
        buffer.free()
        stream.close()


def test_time_is_measured_on_the_device(scan, device):
    with device.active():
        stream = device.stream()
        buffer = device.allocate(1 << 26)
        start = stream.event()
        for _ in range(20):
            stream.copy(buffer.ptr, buffer.ptr + (1 << 25), 1 << 25)
        end = stream.event()
        milliseconds = end.ms_since(start)
        # 20 copies of 32 MiB, read and written: no memory does 100 TB/s, and none 1 GB/s.
        assert 0.01 < milliseconds < 1300
        start.free()
        end.free()
        buffer.free()
        stream.close()


# --- Engine --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_batches_in_any_order_give_what_pytorch_gives(load, scan, rng, cuda_graph):
    engine = load(cuda_graph=cuda_graph)
    for batch in (MOST, 1, 2, 1, MOST, 3, 2):
        images = images_of(rng, batch)
        scan.assert_close(engine.infer(images), images)


def test_graphs_are_replayed_and_change_no_bit(load, rng):
    plain, replayed = load(), load(cuda_graph=True)
    images = images_of(rng)
    assert np.array_equal(replayed.infer(images), plain.infer(images))
    before = load.api.enqueued
    for _ in range(5):
        images = images_of(rng)
        result = replayed.infer(images)
        assert load.api.enqueued == before
        assert np.array_equal(result, plain.infer(images))
        before = load.api.enqueued


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_pytorchs_tensors_are_taken_where_they_are(load, scan, rng, cuda_graph):
    engine = load(cuda_graph=cuda_graph)
    for _ in range(3):
        images = images_of(rng, 2)
        # The default stream is busy when infer is called: its work must be waited for.
        busy = torch.randn(4096, 4096, device="cuda")
        for _ in range(8):
            busy = busy @ busy / 64
        tensor = torch.from_numpy(images).cuda() + busy[0, 0].nan_to_num(0, 0, 0) * 0
        scan.assert_close(engine.infer(tensor), images)
        bare = DeviceArray(tensor.data_ptr(), tuple(tensor.shape))
        scan.assert_close(engine.infer(bare), images)


def test_a_stream_of_pytorch_is_worked_on(load, scan, rng):
    stream = torch.cuda.Stream()
    for cuda_graph in (False, True):
        engine = load(stream=stream, cuda_graph=cuda_graph)
        assert engine.stream == stream.cuda_stream
        images = images_of(rng, 3)
        with torch.cuda.stream(stream):
            tensor = torch.from_numpy(images).cuda(non_blocking=True)
        scan.assert_close(engine.infer(tensor), images)
        engine.close()
    stream.synchronize()  # it is still theirs


def test_work_that_the_plugin_refuses_is_an_error_and_the_engine_goes_on(load, scan, rng):
    engine = load()
    images = images_of(rng)
    scan.assert_close(engine.infer(images), images)
    load.api.refuses = True
    with pytest.raises(InputError, match="did not run the engine"):
        engine.infer(images)
    load.api.refuses = False
    scan.assert_close(engine.infer(images), images)


def test_threads_share_an_engine(load, scan, rng):
    engine = load(cuda_graph=True)
    inputs = [images_of(rng, 1 + i % MOST) for i in range(12)]
    outputs: dict[int, np.ndarray] = {}

    def work(first: int) -> None:
        for index in range(first, len(inputs), 3):
            outputs[index] = engine.infer(inputs[index])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, images in enumerate(inputs):
        scan.assert_close(outputs[index], images)


def test_pytorch_goes_on_while_an_engine_is_loaded_used_and_closed(load, scan, rng):
    before = torch.randn(512, 512, device="cuda")
    square = before @ before
    engine = load(cuda_graph=True)
    engine.infer(images_of(rng))
    assert torch.equal(before @ before, square)
    engine.close()
    assert torch.equal(before @ before, square)


def test_runs_are_timed(load):
    for cuda_graph in (False, True):
        times = load(cuda_graph=cuda_graph).time_runs(50)
        print(f"cuda_graph={cuda_graph}: median {np.median(times) * 1e3:.1f} us")
        assert times.shape == (50,)
        assert (times > 0).all()
        assert np.median(times) < 100


def test_the_device_phase_times_it_and_tells_the_cards_state(load):
    timed = benchmark_engine(load(cuda_graph=True), cuda_graph=True)
    print(timed)
    assert (timed.status, timed.batch, timed.calls) == ("done", MOST, CALLS)
    assert timed.engine is not None
    assert timed.call is not None
    # A call does what the engine does, and copies.
    assert 0 < timed.engine.p50_ms < timed.call.p50_ms < 100
    for moment in (timed.before, timed.after):
        assert moment is not None
        assert 100 < float(moment.gpu_clock_mhz) <= float(moment.gpu_clock_most_mhz)
        assert 0 < float(moment.temperature_c) < 110
        assert 0 < float(moment.power_w) < 2000


def test_an_engine_can_be_loaded_and_closed_many_times(load, rng):
    torch.cuda.synchronize()
    images = images_of(rng)
    load(cuda_graph=True).infer(images)
    free = torch.cuda.mem_get_info()[0]
    for _ in range(20):
        with load(cuda_graph=True) as engine:
            engine.infer(images)
    assert free - torch.cuda.mem_get_info()[0] < 64 << 20
