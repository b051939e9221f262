# SPDX-License-Identifier: Apache-2.0
"""A TensorRT whose engines compute on the GPU in host memory, for tests of the runner.

It refuses what the real one would answer with a wrong result: a first run that is recorded, a graph
whose context has moved on, a context without memory or shapes.
"""

from __future__ import annotations

import enum
import json
from types import ModuleType

import numpy as np

from tests.runtime.fake_device import FakeDevice

CLASSES = 5
ITEM = (3, 4, 6)
INPUT, OUTPUT = "images", "logits"
VERSION = "10.3.0"


def weights(seed: int) -> np.ndarray:
    """The model: logits = images, flattened, times this."""
    return np.random.default_rng(seed).normal(0, 1, (int(np.prod(ITEM)), CLASSES)).astype("f4")


def model(images: np.ndarray, seed: int = 0) -> np.ndarray:
    return images.reshape(len(images), -1) @ weights(seed)


def plan_bytes(batch: int = 1, *, dynamic: bool = False, **changes: object) -> bytes:
    """A plan that the fake TensorRT takes."""
    facts = {"batch": batch, "dynamic": dynamic, "seed": 0, "item": ITEM, "type": "FLOAT"}
    return json.dumps({**facts, **changes}).encode()


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class Strategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Logger:
    def log(self, severity: enum.Enum, message: str) -> None:
        raise NotImplementedError


class _Registry:
    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def load_library(self, path: str) -> object:
        self._calls.append(f"load library {path.rpartition('/')[2]}")
        return object()


class FakeTensorRT(ModuleType):
    """The module ``tensorrt``, for engines of ``plan_bytes``."""

    def __init__(self, device: FakeDevice, version: str = VERSION) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.ILogger = Logger
        self.ExecutionContextAllocationStrategy = Strategy
        self.device = device
        self.contexts: list[_Context] = []
        self.fails: str | None = None
        """What does not work: ``context``, ``address``, ``shape``, ``enqueue``."""
        self.capturable: bool | None = None
        """What a context answers to is_stream_capturable; None: it has no such method."""
        self.failures = 0

    def get_plugin_registry(self) -> _Registry:
        return _Registry(self.device.calls)

    def Runtime(self, logger: Logger) -> _Runtime:  # noqa: N802 - TensorRT's name
        self.logger = logger
        return _Runtime(self)

    def error(self, message: str) -> None:
        self.logger.log(Severity.ERROR, message)


class _Runtime:
    def __init__(self, api: FakeTensorRT) -> None:
        self._api = api

    def deserialize_cuda_engine(self, serialized: bytes) -> _Engine | None:
        self._api.device.require_active()
        self._api.device.calls.append("deserialize")
        try:
            return _Engine(self._api, json.loads(serialized))
        except ValueError:
            self._api.error("Magic tag does not match")
            return None


class _Engine:
    def __init__(self, api: FakeTensorRT, facts: dict[str, object]) -> None:
        self.api, self.facts = api, facts
        self._batch = int(facts["batch"])
        self._names = facts.get("names", [INPUT, OUTPUT])
        self.num_io_tensors = len(self._names)
        self.device_memory_size_v2 = 256

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.OUTPUT if name == OUTPUT else Mode.INPUT

    def get_tensor_dtype(self, name: str) -> object:
        return enum.Enum("DataType", [self.facts["type"]])[self.facts["type"]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        first = -1 if self.facts["dynamic"] else self._batch
        return (first, *(self.facts["item"] if name != OUTPUT else (CLASSES,)))

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert (name, index) == (INPUT, 0)
        return [(n, *self.facts["item"]) for n in (1, self._batch, self._batch)]

    def create_execution_context(self, strategy: Strategy) -> _Context | None:
        self.api.device.require_active()
        self.api.device.calls.append(f"create context {strategy.name}")
        if self.api.fails == "context":
            self.api.error("out of memory")
            return None
        kind = _Context if self.api.capturable is None else _CapturableContext
        context = kind(self, managed=strategy is Strategy.USER_MANAGED)
        self.api.contexts.append(context)
        return context


class _Context:
    def __init__(self, engine: _Engine, *, managed: bool) -> None:
        self._engine = engine
        self._api = engine.api
        self._addresses: dict[str, int] = {}
        self._needs_memory = managed
        self.memory: int | None = None
        self.batch = None if engine.facts["dynamic"] else int(engine.facts["batch"])
        self._state = 0
        self._has_run = False

    def set_device_memory(self, memory: int, size: int) -> None:
        self._api.device.check(memory, size)
        assert size >= self._engine.device_memory_size_v2
        self.memory = memory

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in (INPUT, OUTPUT)
        self._addresses[name] = memory
        self._state += 1
        return self._api.fails != "address"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == INPUT
        self._api.device.calls.append(f"set shape {shape}")
        self.batch = shape[0]
        self._state += 1
        self._has_run = False
        return self._api.fails != "shape"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.batch or -1, *(ITEM if name == INPUT else (CLASSES,)))

    def execute_async_v3(self, stream_handle: int) -> bool:
        device = self._api.device
        device.require_active()
        stream = device.streams[stream_handle]
        assert not self._needs_memory or self.memory is not None
        assert set(self._addresses) == {INPUT, OUTPUT}
        batch, state = self.batch, self._state
        assert batch is not None, "the batch was not told"
        device.calls.append(f"enqueue {batch}")
        if self._api.fails == "enqueue":
            self._api.failures += 1
            self._api.error("an illegal memory access was encountered")
            return False
        assert stream.capturing is None or self._has_run, "the first run is recorded"
        self._has_run = True

        def run() -> None:
            assert state == self._state, "the context has changed since this was recorded"
            images = device.read(self._addresses[INPUT], (batch, *ITEM))
            seed = int(self._engine.facts["seed"])
            device.write(self._addresses[OUTPUT], model(images, seed))
            stream.clock_ms += batch

        stream.add(run)
        return True


class _CapturableContext(_Context):
    def is_stream_capturable(self, stream: int) -> bool:
        assert stream in self._api.device.streams
        return bool(self._api.capturable)
