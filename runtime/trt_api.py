# SPDX-License-Identifier: Apache-2.0
"""What the runner calls of TensorRT: the part that 10.3 to 11.4 and TensorRT-RTX share.

These protocols are the whole list. mypy holds the runner to them, and a test looks for each name
in the packages that are at hand. What only some releases have is in ``OPTIONAL``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

from stormrt.pipeline import engine_api
from stormrt.pipeline.engine_api import (
    EnumType,
    HostMemory,
    Logger,
    NamedValue,
    PluginRegistry,
)

if TYPE_CHECKING:
    from stormrt.targets import RuntimeName

OPTIONAL: frozenset[str] = frozenset({"is_stream_capturable"})
"""Looked for before it is called: TensorRT-RTX has it since 1.2, TensorRT has it not."""


class ExecutionContext(Protocol):
    """The state of one sequence of inferences (``IExecutionContext``)."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set an input's shape, the batch with it."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Return a tensor's shape for the shapes of the inputs that are set."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Set where in device memory a tensor is."""

    def set_device_memory(self, memory: int, size: int) -> None:
        """Give memory for activations to a context that has none of its own."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue one inference."""

    def is_stream_capturable(self, stream: int) -> bool:
        """Whether the work can be recorded as a graph (TensorRT-RTX only)."""


class RuntimeCache(Protocol):
    """Kernels that TensorRT-RTX has compiled for this GPU (``IRuntimeCache``)."""

    def deserialize(self, data: bytes) -> bool:
        """Take what an earlier process has compiled; false where it does not fit."""

    def serialize(self) -> HostMemory:
        """Return it as bytes."""


class RuntimeConfig(Protocol):
    """Options of a context (``IRuntimeConfig``), as TensorRT-RTX has them."""

    def create_runtime_cache(self) -> RuntimeCache:
        """Return an empty cache."""

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        """Use a cache."""

    def set_execution_context_allocation_strategy(self, strategy: NamedValue) -> None:
        """Say whose memory the context uses."""


class RtxEngine(Protocol):
    """What only TensorRT-RTX's engines have: they compile their kernels when a context is made."""

    def create_runtime_config(self) -> RuntimeConfig:
        """Return default options."""

    def create_execution_context(self, runtime_config: RuntimeConfig) -> ExecutionContext | None:
        """Return a new context; None where there is too little memory."""


class CudaEngine(Protocol):
    """A deserialized engine (``ICudaEngine``)."""

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs together."""

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes that a context needs for activations, whatever the shapes."""

    def get_tensor_name(self, index: int) -> str:
        """Return the name of an input or output."""

    def get_tensor_mode(self, name: str) -> NamedValue:
        """Return ``INPUT`` or ``OUTPUT``."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Return a shape; -1 for a batch that is not fixed."""

    def get_tensor_dtype(self, name: str) -> NamedValue:
        """Return an element type, e.g. ``FLOAT``."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        """Return an input's least, most usual and largest shape."""

    def create_execution_context(self, strategy: NamedValue) -> ExecutionContext | None:
        """Return a new context; None where there is too little memory."""


class Runtime(Protocol):
    """What engines are deserialized with (``Runtime``). It must outlive them."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
        """Return the engine of a plan; None where the plan does not fit."""


class _RuntimeType(Protocol):
    def __call__(self, logger: Logger) -> Runtime: ...


class RuntimeApi(Protocol):
    """The module ``tensorrt`` or ``tensorrt_rtx``, as far as the runner uses it."""

    __version__: str
    ILogger: type
    Runtime: _RuntimeType
    ExecutionContextAllocationStrategy: EnumType

    def get_plugin_registry(self) -> PluginRegistry:
        """Return the process's plugin registry."""


def load_runtime_api(runtime: RuntimeName) -> RuntimeApi:
    """Import one of the two packages.

    Raises:
        EnvironmentMissingError: It is not installed, or does not load.
    """
    return cast("RuntimeApi", engine_api.load_api(runtime))
