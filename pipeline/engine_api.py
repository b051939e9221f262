# SPDX-License-Identifier: Apache-2.0
"""One typed view over the API that ``tensorrt`` (10.3 to 11.4) and ``tensorrt_rtx`` (1.7) share.

Both packages are extension modules without types. The protocols below are the part of them that
the builder uses, no more; what only some releases have is marked, and is looked for with `hasattr`
before it is used, never concluded from a version number. Nothing is imported until `load_api`.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from stormrt.errors import EnvironmentMissingError, InputError

if TYPE_CHECKING:
    from stormrt.targets import RuntimeName

PRODUCT_NAMES: dict[RuntimeName, str] = {
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
}
"""What NVIDIA calls the product behind each package."""

LAYER_INFORMATION = "Engine Layer Information:"
"""How the one verbose message begins that lists an engine's layers."""
DETAILED_LAYERS = "Layers:"
"""How TensorRT-RTX's begins, where it is asked for details: one line a kernel, with its types."""

_INSTALL: dict[RuntimeName, str] = {
    # On a Jetson only the board's own package fits its driver; on x86 the PyPI wheels do.
    "tensorrt": (
        "On a Jetson: `sudo apt-get install python3-libnvinfer`, and a virtual environment made "
        "with --system-site-packages. On x86: `python -m pip install 'tensorrt>=10.3,<12'`."
    ),
    "tensorrt_rtx": "`python -m pip install 'tensorrt-rtx>=1.7,<2'` (x86-64 Linux).",
}


class NamedValue(Protocol):
    """A member of one of the module's enumerations. Numbers move between releases, names do not."""

    @property
    def name(self) -> str:
        """The member's name."""

    def __int__(self) -> int: ...


class EnumType(Protocol):
    """One of the module's enumerations."""

    @property
    def __members__(self) -> Mapping[str, NamedValue]: ...


class HostMemory(Protocol):
    """Bytes that the library owns (``IHostMemory``); read them with `as_bytes`."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""


class Tensor(Protocol):
    """A tensor of a network (``ITensor``)."""

    name: str

    @property
    def shape(self) -> Sequence[int]:
        """Extents; -1 where one is not fixed."""

    @property
    def dtype(self) -> NamedValue:
        """Element type, e.g. ``HALF``."""


class Network(Protocol):
    """A network under construction (``INetworkDefinition``)."""

    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> Tensor:
        """Return one input."""

    def get_output(self, index: int) -> Tensor:
        """Return one output."""


class ParserError(Protocol):
    """One thing that the ONNX parser complains about. Valid only while its parser lives."""

    def code(self) -> NamedValue:
        """The kind of error."""

    def desc(self) -> str:
        """What is wrong."""

    def node(self) -> int:
        """The node's index, -1 where it is about no node."""

    def node_name(self) -> str:
        """The node's name, which may be empty."""

    def node_operator(self) -> str:
        """The node's operator."""


class OnnxParser(Protocol):
    """The ONNX parser. Its network must outlive it."""

    num_errors: int

    def parse_from_file(self, path: str) -> bool:
        """Add the file's graph to the network."""

    def get_error(self, index: int) -> ParserError:
        """Return one error."""


class TimingCache(Protocol):
    """Kernel timings that an earlier build measured (``ITimingCache``)."""

    def serialize(self) -> HostMemory:
        """Return the cache as bytes."""


class OptimizationProfile(Protocol):
    """Ranges of the inputs' shapes (``IOptimizationProfile``)."""

    def set_shape(
        self, name: str, least: Sequence[int], usual: Sequence[int], most: Sequence[int], /
    ) -> None:
        """Set one input's least, most usual and largest shape."""


class BuilderConfig(Protocol):
    """Options of one build (``IBuilderConfig``)."""

    builder_optimization_level: int
    progress_monitor: object
    profiling_verbosity: NamedValue

    def set_memory_pool_limit(self, pool: NamedValue, pool_size: int) -> None:
        """Limit one pool, in bytes."""

    def clear_flag(self, flag: NamedValue) -> None:
        """Switch off one flag."""

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        """Use a profile; -1 where it is not valid."""

    def create_timing_cache(self, serialized: bytes) -> TimingCache | None:
        """Return a cache with what the bytes hold, or an empty one for no bytes."""

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Use a cache; false where it was measured elsewhere."""


class RtxBuilderConfig(Protocol):
    """What only TensorRT-RTX's options have."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: NamedValue, index: int) -> bool:
        """Name a GPU to build for."""


class Builder(Protocol):
    """The entry to a build (``Builder``)."""

    def create_network(self, flags: int) -> Network:
        """Return an empty network."""

    def create_builder_config(self) -> BuilderConfig:
        """Return default options."""

    def create_optimization_profile(self) -> OptimizationProfile:
        """Return an empty profile."""

    def build_serialized_network(
        self, network: Network, config: BuilderConfig
    ) -> HostMemory | None:
        """Return the plan, or None where the build failed."""


class PluginRegistry(Protocol):
    """The process's plugins (``IPluginRegistry``)."""

    def load_library(self, plugin_path: str) -> object | None:
        """Load a library and register its creators; None where that failed."""


class Logger(Protocol):
    """An object that the library logs to (``ILogger``)."""


class _BuilderType(Protocol):
    def __call__(self, logger: Logger) -> Builder: ...


class _ParserType(Protocol):
    def __call__(self, network: Network, logger: Logger) -> OnnxParser: ...


class EngineApi(Protocol):
    """The module ``tensorrt`` or ``tensorrt_rtx``, as far as the builder uses it."""

    __version__: str
    ILogger: type
    """Base class of loggers; `type` is all that can be said of it before a module is loaded."""
    IProgressMonitor: type
    """Base class of progress monitors."""
    Builder: _BuilderType
    OnnxParser: _ParserType
    NetworkDefinitionCreationFlag: EnumType
    BuilderFlag: EnumType
    MemoryPoolType: EnumType
    ProfilingVerbosity: EnumType

    def get_plugin_registry(self) -> PluginRegistry:
        """Return the process's plugin registry."""


class RtxApi(Protocol):
    """What only the module ``tensorrt_rtx`` has."""

    __version__: str
    ComputeCapability: EnumType


class LogRecord(NamedTuple):
    """One message of the library."""

    severity: str
    """``INTERNAL_ERROR``, ``ERROR``, ``WARNING``, ``INFO`` or ``VERBOSE`` (the list of layers)."""
    message: str

    @property
    def is_error(self) -> bool:
        """Whether the message reports a failure."""
        return self.severity in ("INTERNAL_ERROR", "ERROR")


def load_api(runtime: RuntimeName) -> EngineApi:
    """Import one of the two packages.

    Args:
        runtime: ``tensorrt`` or ``tensorrt_rtx``.

    Returns:
        The module itself, typed.

    Raises:
        EnvironmentMissingError: The package is not installed, or is and does not load
    """
    product = PRODUCT_NAMES[runtime]
    try:
        module = importlib.import_module(runtime)
    except ModuleNotFoundError as error:
        if error.name != runtime:
            raise _broken(runtime, error) from error
        raise EnvironmentMissingError(
            f"{product} is not installed",
            where=f"Python package {runtime}",
            fix=_INSTALL[runtime],
        ) from error
    except (ImportError, OSError) as error:
        raise _broken(runtime, error) from error
    return cast("EngineApi", module)


def _broken(runtime: RuntimeName, error: Exception) -> EnvironmentMissingError:
    # On a board whose JetPack was changed under a container, a library that the package needs is
    # often what is missing; "not installed" would send its user the wrong way.
    return EnvironmentMissingError(
        f"{PRODUCT_NAMES[runtime]} is installed and does not load",
        where=f"Python package {runtime}",
        got=str(error),
        fix=f"install a build that fits this machine. {_INSTALL[runtime]}",
    )


def as_bytes(memory: HostMemory) -> memoryview:
    """Return the library's bytes without copying them. They live as long as `memory` does."""
    # IHostMemory has the buffer protocol, for which Python 3.10 has no type.
    return memoryview(cast("bytes", memory))


class _LogSink:
    """Where a logger's messages go: the list of the capture that is open, or nowhere."""

    def __init__(self) -> None:
        self.records: list[LogRecord] | None = None

    def add(self, severity: str, message: str) -> None:
        records = self.records
        # A large graph logs hundreds of megabytes of verbose messages; two of them are of use.
        lists = (LAYER_INFORMATION, DETAILED_LAYERS)
        wanted = severity != "VERBOSE" or message.startswith(lists)
        if records is not None and wanted:
            records.append(LogRecord(severity, message))


_loggers: dict[str, tuple[Logger, _LogSink]] = {}
_libraries: dict[tuple[str, Path], object] = {}
_capture_lock = threading.RLock()


def _shared_logger(api: EngineApi) -> tuple[Logger, _LogSink]:
    # The library keeps the first logger that it is given for the whole process and ignores later
    # ones (with a warning), so there is one per package, and it must never be collected.
    name = cast("str", getattr(api, "__name__", "tensorrt"))
    if name not in _loggers:
        sink = _LogSink()
        base = api.ILogger

        class Captured(base):  # type: ignore[misc, valid-type]  # base known once loaded
            def log(self, severity: NamedValue, msg: str) -> None:
                sink.add(severity.name, msg)

        _loggers[name] = cast("Logger", Captured()), sink
    return _loggers[name]


@contextmanager
def captured_log(api: EngineApi) -> Iterator[tuple[Logger, list[LogRecord]]]:
    """Collect what the library logs, instead of printing it.

    One capture is open at a time: the library has one logger per process, and a second thread's
    messages could not be told from the first's. The second thread waits.

    Args:
        api: The module, from `load_api`.

    Yields:
        The logger to give to ``Builder``, ``OnnxParser`` or ``Runtime``, and the list that its
        messages are appended to until the block ends.
    """
    with _capture_lock:
        logger, sink = _shared_logger(api)
        outer, sink.records = sink.records, []
        try:
            yield logger, sink.records
        finally:
            sink.records = outer


def load_plugin_libraries(api: EngineApi, libraries: Sequence[Path]) -> None:
    """Register the plugins of some shared libraries, each library once per process.

    Nothing is ever unloaded: an engine or a network that is still alive would be left with code
    that is gone.

    Args:
        api: The module, from `load_api`.
        libraries: Shared libraries that export ``getCreators``.

    Raises:
        InputError: A library does not exist, or TensorRT does not accept it.
    """
    name = cast("str", getattr(api, "__name__", "tensorrt"))
    for library in libraries:
        path = library.resolve()
        if (name, path) in _libraries:
            continue
        if not path.is_file():
            raise InputError("the plugin library does not exist", where=str(library))
        with captured_log(api) as (_, records):
            handle = api.get_plugin_registry().load_library(str(path))
        if handle is None:
            raise InputError(
                "TensorRT does not load the plugin library",
                where=str(library),
                got="; ".join(r.message for r in records if r.is_error)
                or "no reason given; usual ones are another CPU architecture or TensorRT major "
                "version, or plugins of the same name that are registered already",
                fix="build the library on this machine, against the TensorRT that is installed",
            )
        _libraries[name, path] = handle
