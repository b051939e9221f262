# SPDX-License-Identifier: Apache-2.0
"""TensorRT's side of the runner: a deserialized engine, its tensors and its contexts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from stormrt.errors import InputError
from stormrt.pipeline import engine_api, files
from stormrt.pipeline.engine_api import PRODUCT_NAMES, EngineApi, LogRecord
from stormrt.runtime.device import Buffer, Device
from stormrt.runtime.record import EngineRecord
from stormrt.runtime.trt_api import (
    CudaEngine,
    ExecutionContext,
    RtxEngine,
    Runtime,
    RuntimeApi,
    RuntimeCache,
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of an engine."""

    name: str
    item_shape: tuple[int, ...]
    """Its extents without the batch."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine takes and gives: batches of one FP32 tensor each."""

    input: TensorSpec
    output: TensorSpec
    least_batch: int
    most_batch: int
    """Equal to ``least_batch`` for an engine whose batch is fixed."""
    is_open: bool
    """Whether the batch is left open in the engine, so that it must be told."""

    @property
    def is_dynamic(self) -> bool:
        """Whether the batch may vary."""
        return self.least_batch != self.most_batch


class Program:
    """A deserialized engine, ready to be enqueued. Its device is the active one in every call.

    A graph holds the state of the context that it was recorded from, so that with graphs each
    batch has a context of its own (TensorRT's developer guide, "CUDA Graphs"). They take turns on
    one stream, and share one memory for activations.

    Args:
        api: The module, from ``load_runtime_api``.
        record: The engine.
        device: Where it runs.
        context_per_batch: Keep a context for each batch, for graphs.

    Raises:
        InputError: TensorRT refuses the plan or its plugins, there is too little memory, or the
            engine has other inputs and outputs than one of each.
    """

    def __init__(
        self, api: RuntimeApi, record: EngineRecord, device: Device, *, context_per_batch: bool
    ) -> None:
        self._api = api
        # The builder's view of the same module, for the log and the registry of plugins.
        self._builder_api = cast("EngineApi", api)
        self._record = record
        self._contexts: dict[int | None, _Context] = {}
        self._activations: Buffer | None = None
        self._runtime_cache: RuntimeCache | None = None
        self._tensors: dict[str, int] = {}
        engine_api.load_plugin_libraries(self._builder_api, [p.path for p in record.plugins])
        with engine_api.captured_log(self._builder_api) as (logger, records):
            self._runtime: Runtime | None = api.Runtime(logger)
            engine = self._runtime.deserialize_cuda_engine(record.plan.read_bytes())
        if engine is None:
            raise self._refused("does not take the engine", records)
        self._engine: CudaEngine | None = engine
        self.spec = _read_spec(engine, record)
        self._context_per_batch = context_per_batch and self.spec.is_dynamic
        if self._context_per_batch:
            self._activations = device.allocate(max(1, engine.device_memory_size_v2))

    def bind(self, images: int, outputs: int) -> None:
        """Say where in device memory the input and the output are, before anything is enqueued."""
        self._tensors = {self.spec.input.name: images, self.spec.output.name: outputs}

    def prepare(self, batch: int) -> ExecutionContext:
        """Return the context for a batch, its shapes set.

        Raises:
            InputError: TensorRT refuses, or there is too little memory for a context.
        """
        key = batch if self._context_per_batch else None
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = _Context(self._new_context())
        if context.batch != batch:
            tensor = self.spec.input
            if self.spec.is_open and not context.api.set_input_shape(
                tensor.name, (batch, *tensor.item_shape)
            ):
                raise self._refused(f"does not take a batch of {batch}", ())
            context.batch = batch
        return context.api

    def enqueue(self, batch: int, stream: int) -> None:
        """Enqueue one inference.

        Raises:
            InputError: TensorRT refuses it.
        """
        context = self.prepare(batch)
        if context.execute_async_v3(stream):
            return
        # What it logged went nowhere: to hold the log at every call would mean to wait for it
        # whenever another thread builds. So it is asked once more, for the reason.
        with engine_api.captured_log(self._builder_api) as (_, records):
            context.execute_async_v3(stream)
        raise self._refused("did not run the engine", records)

    def close(self) -> None:
        """Give everything back, the contexts first. The work must be done."""
        self._keep_runtime_cache()
        self._contexts.clear()
        if self._activations is not None:
            self._activations.free()
        self._activations = self._engine = self._runtime = None

    def _new_context(self) -> ExecutionContext:
        assert self._engine is not None
        with engine_api.captured_log(self._builder_api) as (_, records):
            context = self._create_context(self._engine)
        if context is None:
            raise self._refused("has no memory to run the engine", records)
        if self._activations is not None:
            size = max(1, self._engine.device_memory_size_v2)
            context.set_device_memory(self._activations.ptr, size)
        for name, address in self._tensors.items():
            if not context.set_tensor_address(name, address):
                raise self._refused(f"does not take the address of {name}", ())
        return context

    def _create_context(self, engine: CudaEngine) -> ExecutionContext | None:
        strategies = self._api.ExecutionContextAllocationStrategy.__members__
        strategy = strategies["USER_MANAGED" if self._activations else "STATIC"]
        path = self._record.runtime_cache
        if (
            path is None
            or self._record.runtime != "tensorrt_rtx"
            or not hasattr(engine, "create_runtime_config")
        ):
            return engine.create_execution_context(strategy)
        rtx = cast("RtxEngine", engine)
        config = rtx.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if self._runtime_cache is None:
            self._runtime_cache = config.create_runtime_cache()
            if path.is_file():
                # One of another GPU or release is not taken, and the kernels are compiled anew.
                self._runtime_cache.deserialize(path.read_bytes())
        config.set_runtime_cache(self._runtime_cache)
        return rtx.create_execution_context(config)

    def _keep_runtime_cache(self) -> None:
        path, cache = self._record.runtime_cache, self._runtime_cache
        self._runtime_cache = None
        if path is None or cache is None:
            return
        with suppress(InputError), files.atomic_path(path) as temporary:  # only time is lost
            temporary.write_bytes(engine_api.as_bytes(cache.serialize()))

    def _refused(self, what: str, records: Sequence[LogRecord]) -> InputError:
        errors = "; ".join(r.message for r in records if r.is_error)
        fix = f"build it again on this machine: {self._record.rebuild}"
        if "plugin" in errors.lower() and not self._record.plugins:
            fix = "give the library with its plugins: plugin_libraries=[PATH]"
        return InputError(
            f"{PRODUCT_NAMES[self._record.runtime]} {what}",
            where=str(self._record.plan),
            got=errors or "no reason given",
            fix=fix,
        )


class _Context:
    def __init__(self, api: ExecutionContext) -> None:
        self.api = api
        self.batch: int | None = None


def _read_spec(engine: CudaEngine, record: EngineRecord) -> EngineSpec:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    modes = {name: engine.get_tensor_mode(name).name for name in names}
    inputs = [name for name in names if modes[name] == "INPUT"]
    outputs = [name for name in names if modes[name] == "OUTPUT"]
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(
            "the engine is none of a classifier",
            where=str(record.plan),
            got=f"inputs {', '.join(inputs)}; outputs {', '.join(outputs)}",
            expected="one input and one output",
        )
    shapes = [tuple(engine.get_tensor_shape(name)) for name in (*inputs, *outputs)]
    is_open = shapes[0][0] < 0
    least = most = shapes[0][0]
    if is_open:
        profile = engine.get_tensor_profile_shape(inputs[0], 0)
        least, most = int(profile[0][0]), int(profile[2][0])
    if any(extent < 0 for shape in shapes for extent in shape[1:]) or shapes[1][0] != shapes[0][0]:
        raise InputError(
            "the engine's shapes are not fixed but for the batch",
            where=str(record.plan),
            got=f"{inputs[0]} {shapes[0]} -> {outputs[0]} {shapes[1]}",
            expected="[B, 3, H, W] -> [B, classes]",
        )
    for name in (*inputs, *outputs):
        kind = engine.get_tensor_dtype(name).name
        if kind != "FLOAT":
            raise InputError(
                "the engine's inputs and outputs are not FP32",
                where=f"{record.plan}: {name}",
                got=kind,
                fix="leave them FP32 in the graph, whatever its precision",
            )
    return EngineSpec(
        TensorSpec(inputs[0], shapes[0][1:]),
        TensorSpec(outputs[0], shapes[1][1:]),
        least,
        most,
        is_open,
    )
