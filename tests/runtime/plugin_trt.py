# SPDX-License-Identifier: Apache-2.0
"""A module like TensorRT whose engines are one plugin, so that the runner works on a real GPU.

TensorRT itself cannot be had there. Everything else is real: memory, copies, streams, graphs, and
the plugin, made for a build, serialised, made again, attached to each execution context.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Protocol

from tests.runtime.fake_trt import INPUT, OUTPUT, Logger, Mode, Strategy


class Work(Protocol):
    """What an execution context does."""

    def set_batch(self, batch: int) -> None:
        """Told before the first inference, and when the batch changes."""

    def enqueue(self, x: int, y: int, stream: int) -> bool:
        """Enqueue an inference from one address to another; whether that worked."""


class PluginTensorRT(ModuleType):
    """The module ``tensorrt`` for one engine: batches of ``item`` to batches of the same."""

    def __init__(self, item: tuple[int, ...], most_batch: int, attach: Callable[[], Work]) -> None:
        super().__init__("tensorrt")
        self.__version__ = "10.3.0"
        self.ILogger = Logger
        self.ExecutionContextAllocationStrategy = Strategy
        self.item, self.most_batch, self.attach = item, most_batch, attach
        self.enqueued = 0
        self.refuses = False
        """Whether no work is taken."""

    def Runtime(self, _logger: Logger) -> SimpleNamespace:  # noqa: N802 - TensorRT's name
        return SimpleNamespace(deserialize_cuda_engine=lambda _plan: _Engine(self))


class _Engine:
    num_io_tensors = 2
    device_memory_size_v2 = 1024

    def __init__(self, api: PluginTensorRT) -> None:
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
    def __init__(self, api: PluginTensorRT) -> None:
        self._api = api
        self._addresses: dict[str, int] = {}
        self._work = api.attach()

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= _Engine.device_memory_size_v2

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        self._work.set_batch(shape[0])
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._api.enqueued += 1
        if self._api.refuses:
            return False
        return self._work.enqueue(self._addresses[INPUT], self._addresses[OUTPUT], stream_handle)
