# SPDX-License-Identifier: Apache-2.0
"""A full TensorRT that also builds: graphs are JSON files, engines those of ``fake_trt``."""

from __future__ import annotations

import enum
import json

import numpy as np

from tests.runtime.fake_device import FakeDevice
from tests.runtime.fake_trt import CLASSES, INPUT, ITEM, OUTPUT, FakeTensorRT, plan_bytes

GPU_CACHE = b"timings of this GPU"


def graph_bytes(batch: int = 1, *, dynamic: bool = False, **changes: object) -> bytes:
    """A graph that the fake parser takes: what its engine computes."""
    return plan_bytes(batch, dynamic=dynamic, **changes)


class Flag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    TF32 = 7


class Pool(enum.IntEnum):
    WORKSPACE = 0


class DataType(enum.IntEnum):
    FLOAT = 0


class Monitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError


class _Tensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape, self.dtype = name, shape, DataType.FLOAT


class _Network:
    num_inputs = num_outputs = 1
    facts: dict[str, object]

    def _batch(self) -> int:
        return -1 if self.facts["dynamic"] else int(self.facts["batch"])

    def get_input(self, index: int) -> _Tensor:
        return _Tensor(INPUT, (self._batch(), *ITEM))

    def get_output(self, index: int) -> _Tensor:
        return _Tensor(OUTPUT, (self._batch(), CLASSES))


class _Parser:
    num_errors = 0

    def __init__(self, network: _Network, logger: object) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        with open(path, "rb") as file:
            self._network.facts = json.load(file)
        return True


class _Cache:
    def __init__(self, stored: bytes) -> None:
        self.stored = stored

    def serialize(self) -> np.ndarray:
        return np.frombuffer(GPU_CACHE, np.uint8)


class _Profile:
    def set_shape(self, name: str, least: object, usual: object, most: object) -> None:
        assert name == INPUT


class _Config:
    progress_monitor: Monitor | None = None
    builder_optimization_level = 3

    def __init__(self) -> None:
        self.workspace = 0

    def set_memory_pool_limit(self, pool: Pool, pool_size: int) -> None:
        assert pool is Pool.WORKSPACE
        self.workspace = pool_size

    def clear_flag(self, flag: BuilderFlag) -> None:
        assert flag is BuilderFlag.TF32

    def add_optimization_profile(self, profile: _Profile) -> int:
        return 0

    def create_timing_cache(self, serialized: bytes) -> _Cache:
        return _Cache(bytes(serialized))

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return cache.stored in (b"", GPU_CACHE)


class _Builder:
    def __init__(self, api: BuildingTensorRT) -> None:
        self._api = api

    def create_network(self, flags: int) -> _Network:
        assert flags == 1 << Flag.STRONGLY_TYPED
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> np.ndarray | None:
        self._api.workspaces.append(config.workspace)
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            for step in range(2):
                assert monitor.step_complete("Building", step)
            monitor.phase_finish("Building")
        if self._api.breaks_after == len(self._api.workspaces):
            raise KeyboardInterrupt
        return np.frombuffer(json.dumps(network.facts).encode(), np.uint8)


class BuildingTensorRT(FakeTensorRT):
    """The module ``tensorrt``."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__(device)
        self.workspaces: list[int] = []
        """Limits of the builds, in bytes."""
        self.breaks_after: int | None = None
        """Number of the build in which it is interrupted."""
        self.IProgressMonitor = Monitor
        self.NetworkDefinitionCreationFlag = Flag
        self.BuilderFlag = BuilderFlag
        self.MemoryPoolType = Pool
        self.OnnxParser = _Parser

    def Builder(self, logger: object) -> _Builder:  # noqa: N802 - TensorRT's name
        self.logger = logger
        return _Builder(self)
