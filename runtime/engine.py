# SPDX-License-Identifier: Apache-2.0
"""``Engine``: a built engine, from images to logits."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from itertools import pairwise
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline import probe
from stormrt.runtime.arrays import LEGACY_STREAM, DeviceArray, device_array, stream_handle
from stormrt.runtime.device import Device, Graph, Stream
from stormrt.runtime.program import EngineSpec, Program, TensorSpec
from stormrt.runtime.record import EngineRecord, check_files, check_gpu, check_version
from stormrt.runtime.trt_api import load_runtime_api

if TYPE_CHECKING:
    from stormrt.targets import RuntimeName


class Engine:
    """A built engine on this machine's GPU: images in, logits out. Made by ``load``.

    Memory on the device, page-locked host memory and the stream are reserved once, for the largest
    batch. Calls from several threads are taken in turn.

    Example:
        with Engine.load("build/") as engine:
            logits = engine.infer(images)
    """

    def __init__(
        self,
        program: Program,
        device: Device,
        stream: Stream,
        resources: ExitStack,
        *,
        cuda_graph: bool,
    ) -> None:
        spec = program.spec
        self._images = _Tensor(device, spec.input, spec.most_batch, resources)
        self._logits = _Tensor(device, spec.output, spec.most_batch, resources)
        program.bind(self._images.ptr, self._logits.ptr)
        self._program = program
        self._device = device
        self._stream = stream
        self._uses_graphs = cuda_graph
        self._graphs: dict[int, Graph] = {}
        self._lock = threading.RLock()
        resources.callback(_free_all, self._graphs)
        resources.callback(stream.synchronize)  # the first thing to happen
        # At exit, too: TensorRT's objects must not outlive CUDA.
        self._finalizer = weakref.finalize(self, _release, device, resources.pop_all())

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        runtime: RuntimeName | None = None,
        plugin_libraries: Sequence[Path] | None = None,
        cuda_graph: bool = False,
        stream: object = None,
        device: int | Device = 0,
    ) -> Engine:
        """Load an engine, or say why it does not fit here.

        Args:
            path: An output folder of ``stormrt build``, or a plan. Without a manifest beside it
                only TensorRT can tell whether a plan fits.
            runtime: What built a plan that has no manifest; ``tensorrt`` unless given.
            plugin_libraries: The libraries with the engine's plugins. Unless given, the one that
                ``STORMRT_PLUGIN_LIB`` names, or that the build has left in the folder.
            cuda_graph: Record the engine's work once a batch size, and replay it: one launch
                instead of hundreds. The first call of each batch size is slower.
            stream: The stream to work on: one of pycuda, PyTorch or CuPy, or a ``cudaStream_t``
                as a number; it must live as long as the engine. The engine makes its own unless
                given.
            device: CUDA's number of the GPU.

        Returns:
            The engine. Close it, or use it as a context manager.

        Raises:
            InputError: The engine is for another GPU, another version of TensorRT or another
                plugin library; a file is missing or has changed; TensorRT refuses it; there is
                too little memory.
            EnvironmentMissingError: There is no GPU, or TensorRT is missing.
        """
        from stormrt.runtime.manifest_record import read_record  # needs pydantic

        record = read_record(Path(path), runtime, plugin_libraries)
        return cls.open(record, cuda_graph=cuda_graph, stream=stream, device=device)

    @classmethod
    def open(
        cls,
        record: EngineRecord,
        *,
        cuda_graph: bool = False,
        stream: object = None,
        device: int | Device = 0,
    ) -> Engine:
        """Load an engine of which all is known. Arguments and errors: ``load``."""
        handle = None if stream is None else stream_handle(stream)
        if cuda_graph and handle in (0, LEGACY_STREAM):
            raise InputError(
                "CUDA records no graph on the default stream",
                fix="give another stream, or none",
            )
        name, sm = _find_gpu(device) if isinstance(device, int) else (device.name, device.sm)
        check_gpu(record, name, sm)
        api = load_runtime_api(record.runtime)
        check_version(record, api.__version__)
        check_files(record)
        gpu = _open_gpu(device) if isinstance(device, int) else device
        with gpu.active(), ExitStack() as resources:
            own = gpu.stream(handle)
            resources.callback(own.close)
            resources.callback(_forget, [stream])  # kept alive until then
            program = Program(api, record, gpu, context_per_batch=cuda_graph)
            resources.callback(program.close)
            return cls(program, gpu, own, resources, cuda_graph=cuda_graph)

    @property
    def spec(self) -> EngineSpec:
        """What it takes and gives: names, shapes, batches."""
        return self._program.spec

    @property
    def stream(self) -> int:
        """The ``cudaStream_t`` that it works on, as a number."""
        return self._stream.handle

    def infer(self, images: object) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            images: [B, 3, H, W], FP32, normalised. A NumPy array; or in device memory: something
                with ``__cuda_array_interface__`` (PyTorch, CuPy), with ``ptr``, ``shape`` and
                ``dtype`` (pycuda), or a ``DeviceArray``.

        Returns:
            Logits [B, classes], FP32, in memory of their own.

        Raises:
            InputError: Shape, type or batch do not fit; the engine is closed; CUDA or TensorRT
                fails.
        """
        source = self._accept(images)
        batch = source.shape[0]
        with self._open(), self._waiting_on_failure():
            if isinstance(source, DeviceArray):
                if source.stream is not None:
                    self._stream.wait_for(source.stream)
                self._stream.copy(self._images.ptr, source.ptr, source.size_bytes)
            else:
                self._images.host[:batch] = source
                self._stream.copy_in(self._images.ptr, self._images.host[:batch])
            self._enqueue(batch)
            self._stream.copy_out(self._logits.host[:batch], self._logits.ptr)
            self._stream.synchronize()
            return self._logits.host[:batch].copy()

    def time_runs(self, count: int, batch: int | None = None) -> NDArray[np.float64]:
        """Measure the engine alone, without copies, on what its input holds.

        Args:
            count: Runs.
            batch: Images a run; the most unless given.

        Returns:
            [count] milliseconds of the device's clock, from one end of a run to the next.

        Raises:
            InputError: The batch does not fit, the engine is closed, or CUDA or TensorRT fails.
        """
        size = self.spec.most_batch if batch is None else batch
        self._check_batch(size)
        with self._open(), ExitStack() as marks:
            self._enqueue(size)  # what happens once is not measured
            events = []
            for index in range(count + 1):
                if index:
                    self._enqueue(size)
                events.append(self._stream.event())
                marks.callback(events[-1].free)
            return np.array([end.ms_since(start) for start, end in pairwise(events)])

    def close(self) -> None:
        """Give everything back. What follows is refused; a second call does nothing."""
        with self._lock:
            self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _waiting_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # What was enqueued before still uses the caller's memory, and ours.
            with suppress(InputError):
                self._stream.synchronize()
            raise

    def _enqueue(self, batch: int) -> None:
        if not self._uses_graphs:
            self._program.enqueue(batch, self.stream)
            return
        graph = self._graphs.get(batch)
        if graph is None:
            graph = self._graphs[batch] = self._record(batch)
        graph.launch()

    def _record(self, batch: int) -> Graph:
        context = self._program.prepare(batch)
        # TensorRT-RTX has it; in TensorRT the capture itself fails.
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(
            self.stream
        ):
            raise _no_graph("TensorRT-RTX says that its work cannot be recorded")
        # Once without: TensorRT does on the first run what a graph must not hold.
        self._program.enqueue(batch, self.stream)
        self._stream.synchronize()
        try:
            return self._stream.capture(lambda: self._program.enqueue(batch, self.stream))
        except InputError as error:
            raise _no_graph(error.got or error.what) from error

    def _accept(self, images: object) -> NDArray[np.float32] | DeviceArray:
        source = images if isinstance(images, np.ndarray) else device_array(images)
        if source is None:
            raise InputError(
                "those are no images",
                got=type(images).__name__,
                expected="a NumPy array, or an array in device memory",
            )
        item = self.spec.input.item_shape
        if len(source.shape) != len(item) + 1 or tuple(source.shape[1:]) != item:
            raise InputError(
                "the images have another shape than the engine takes",
                got=str(tuple(source.shape)),
                expected=f"[B, {', '.join(map(str, item))}]",
                fix="preprocess them to the engine's size, or build an engine for theirs (--size)",
            )
        if np.dtype(source.dtype) != np.float32:
            raise InputError(
                "the images have another type than the engine takes",
                got=str(np.dtype(source.dtype)),
                expected="float32, normalised",
            )
        self._check_batch(source.shape[0])
        return source

    def _check_batch(self, batch: int) -> None:
        spec = self.spec
        if spec.least_batch <= batch <= spec.most_batch:
            return
        fixed = spec.least_batch == spec.most_batch
        raise InputError(
            "the engine takes no batch of that size",
            got=str(batch),
            expected=str(spec.most_batch) if fixed else f"{spec.least_batch} to {spec.most_batch}",
            fix="fill the batch up with zeros, or build with --dynamic-batch" if fixed else None,
        )

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock, self._device.active():
            if not self._finalizer.alive:
                raise InputError("the engine is closed")
            yield


class _Tensor:
    """An input or output: memory on the device, and page-locked memory to copy through."""

    def __init__(
        self, device: Device, spec: TensorSpec, most_batch: int, resources: ExitStack
    ) -> None:
        pinned = device.pinned((most_batch, *spec.item_shape))
        resources.callback(pinned.free)
        self.host = pinned.array
        buffer = device.allocate(self.host.nbytes)
        resources.callback(buffer.free)
        self.ptr = buffer.ptr


def _release(device: Device, resources: ExitStack) -> None:
    with device.active():
        resources.close()


def _free_all(graphs: dict[int, Graph]) -> None:
    for graph in graphs.values():
        graph.free()
    graphs.clear()


def _forget(kept: list[object]) -> None:
    kept.clear()


def _no_graph(reason: str) -> InputError:
    return InputError(
        "the engine's work could not be recorded as a CUDA graph",
        got=reason,
        fix="load the engine with cuda_graph=False",
    )


def _find_gpu(index: int) -> tuple[str, int]:
    driver = probe.cuda_driver()
    if driver.reason is not None:
        raise EnvironmentMissingError("an engine runs on an NVIDIA GPU", got=driver.reason)
    if not 0 <= index < len(driver.gpus):
        raise EnvironmentMissingError(
            "there is no such GPU",
            got=f"device {index}",
            expected=f"0 to {len(driver.gpus) - 1}",
        )
    gpu = driver.gpus[index]
    return gpu.name, gpu.sm


def _open_gpu(index: int) -> Device:
    if find_spec("pycuda") is not None:
        # An application that uses pycuda has made a context, which must be shared.
        from stormrt.runtime.pycuda_device import PycudaDevice

        return PycudaDevice(index)
    from stormrt.runtime.driver_device import DriverDevice

    return DriverDevice(index)
