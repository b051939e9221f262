# SPDX-License-Identifier: Apache-2.0
"""A module like TensorRT whose engines are one kernel, so that the runner works on a real GPU.

TensorRT itself cannot be had there. Everything else is real: memory, copies, streams, graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

from tests.runtime.fake_trt import INPUT, OUTPUT, Logger, Mode, Strategy

Kernel = Callable[[int, int, int, int], None]
"""Enqueues a batch: batch, address of the images, address of the result, stream."""


class KernelTensorRT(ModuleType):
    """The module ``tensorrt`` for one engine: batches of ``item`` to batches of the same."""

    def __init__(self, item: tuple[int, ...], most_batch: int, kernel: Kernel) -> None:
        super().__init__("tensorrt")
        self.__version__ = "10.3.0"
        self.ILogger = Logger
        self.ExecutionContextAllocationStrategy = Strategy
        self.item, self.most_batch, self.kernel = item, most_batch, kernel
        self.enqueued = 0

    def Runtime(self, _logger: Logger) -> SimpleNamespace:  # noqa: N802 - TensorRT's name
        return SimpleNamespace(deserialize_cuda_engine=lambda _plan: _Engine(self))


class _Engine:
    num_io_tensors = 2
    device_memory_size_v2 = 1024

    def __init__(self, api: KernelTensorRT) -> None:
        self._api = api

    def get_tensor_name(self, index: int) -> str:
        return (INPUT, OUTPUT)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == INPUT else Mode.OUTPUT

    def get_tensor_dtype(self, _name: str) -> SimpleNamespace:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (-1, *self._api.item)

    def get_tensor_profile_shape(self, _name: str, _profile: int) -> list[tuple[int, ...]]:
        most = (self._api.most_batch, *self._api.item)
        return [(1, *self._api.item), most, most]

    def create_execution_context(self, _strategy: Strategy) -> _Context:
        return _Context(self._api)


class _Context:
    def __init__(self, api: KernelTensorRT) -> None:
        self._api = api
        self._addresses: dict[str, int] = {}
        self._batch = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= _Engine.device_memory_size_v2

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        self._batch = shape[0]
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._api.enqueued += 1
        addresses = self._addresses[INPUT], self._addresses[OUTPUT]
        self._api.kernel(self._batch, *addresses, stream_handle)
        return True
