# SPDX-License-Identifier: Apache-2.0
"""Build an engine from a lowered ONNX graph: one builder for TensorRT and TensorRT-RTX.

Precision is in the graph and nowhere else: the network is strongly typed and no builder flag asks
for FP16 or INT8. One flag is cleared, TF32, because TensorRT sets it by default and would then
round the inputs of FP32 convolutions to 10 bits on Ampere and later, which the graph did not ask
for. What only some releases have is looked for by name; no version number is compared.

The same ONNX, recipe and TensorRT-RTX give the same bytes. Full TensorRT times kernels and picks
the fastest, so two of its builds may differ.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline import engine_api, files, probe
from stormrt.pipeline.device.board import Board, version_in
from stormrt.pipeline.engine_api import (
    PRODUCT_NAMES,
    Builder,
    BuilderConfig,
    EngineApi,
    LogRecord,
    Network,
    OnnxParser,
    ParserError,
    Tensor,
)
from stormrt.pipeline.engine_config import (
    add_batch_profile,
    configure,
    network_flags,
    use_timing_cache,
)
from stormrt.pipeline.engine_progress import ProgressCallback, attach_monitor
from stormrt.pipeline.interruption import held_interrupts

if TYPE_CHECKING:
    from stormrt.targets import RuntimeName

_MESSAGES_SHOWN = 5

# What a builder's error means to the person who reads it.
_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"Turing.*FP32 GEMM is not supported",
        (
            "TensorRT-RTX multiplies no FP32 matrices on Turing (T4): build with --precision "
            "fp16, or build FP32 with --runtime tensorrt on the T4 itself"
        ),
    ),
    (
        r"(?i)out ?of ?memory",
        "close other programs (on a Jetson add swap), or lower build.workspace_mib in the recipe",
    ),
    (
        r"(?i)could not find any implementation|insufficient workspace",
        "raise build.workspace_mib in the recipe",
    ),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of an engine."""

    name: str
    """Its name in the ONNX graph."""
    shape: tuple[int, ...]
    """Its extents; -1 for a batch that is not fixed."""
    dtype: str
    """TensorRT's name of the element type in lower case: ``float``, ``half``, ``int32`` ..."""


@dataclass(frozen=True, slots=True)
class EngineBuildResult:
    """An engine that was built and written."""

    plan: Path
    """The file."""
    sha256: str
    """Its digest, hexadecimal."""
    size_bytes: int
    """Its size."""
    runtime: RuntimeName
    """The package that built it, the only one that can run it."""
    runtime_version: str
    """That package's version."""
    sm: int
    """Compute capability of the GPU that it runs on, times ten."""
    build_seconds: float
    """Wall-clock time of parsing and building, without writing."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: tuple[str, ...]
    """One line for each layer after fusion, as TensorRT logs it; empty where it logs none. Of
    TensorRT-RTX they have types and ONNX nodes (``engine_layers``)."""
    warnings: tuple[str, ...]
    """What the library warned of, and what the builder did otherwise than asked."""
    timing_cache: Literal["none", "new", "reused"]
    """Whether kernels had been timed before."""


def build_engine(
    onnx_path: Path,
    *,
    runtime: RuntimeName,
    target: Board,
    out: Path,
    plugin_libraries: Sequence[Path] = (),
    progress: ProgressCallback | None = None,
    timing_cache: Path | None = None,
    workspace_mib: int | None = None,
    board_command: str | None = None,
    max_batch: int | None = None,
) -> EngineBuildResult:
    """Build an engine and write it under its final name, whole or not at all.

    Ctrl-C cancels the build at the next step of the builder: nothing is written then, and a plan
    of an earlier build stays as it was.

    Args:
        onnx_path: The lowered graph; all shapes fixed, but perhaps the batch.
        runtime: The package to build with.
        target: The recipe of the board that the engine is for.
        out: Name of the plan.
        plugin_libraries: Shared libraries with the graph's plugins (``tensorrt`` only).
        progress: Called as the build goes on, perhaps from several threads, one call at a time.
            An exception that it raises cancels the build and is raised again.
        timing_cache: A file of kernel timings that shortens later builds on the same board
            (``tensorrt`` only); read where it exists, then written.
        workspace_mib: Most scratch memory that a layer may use, in MiB; the recipe's unless given.
        board_command: The command that builds on the board, for the message to a user whose
            machine is not the board. ``stormrt build <folder>`` unless given.
        max_batch: For a graph whose batch is not fixed: the engine takes 1 to this many images
            and is tuned for this many.

    Returns:
        What was built.

    Raises:
        InputError: The graph, the recipe or an argument does not fit: TensorRT cannot parse or
            build the graph, the target has no such runtime or GPU, a file is missing.
        EnvironmentMissingError: The package is missing or of an unsupported version, or, with
            ``tensorrt``, this machine has not the target's GPU.
        KeyboardInterrupt: The build was cancelled.
    """
    command = board_command or f"stormrt build {onnx_path.parent}"
    _check_arguments(onnx_path, runtime, target, out, plugin_libraries, timing_cache)
    if runtime == "tensorrt":
        require_gpu(target, command)
    api = engine_api.load_api(runtime)
    _require_version(api, runtime, target)
    engine_api.load_plugin_libraries(api, plugin_libraries)

    notes: list[str] = []
    with engine_api.captured_log(api) as (logger, records):
        started = time.perf_counter()
        builder = api.Builder(logger)
        network = builder.create_network(network_flags(api))
        # The parser frees its errors when it goes, and the network must outlive the parser: both
        # keep their names until the end of the block.
        parser = api.OnnxParser(network, logger)
        with held_interrupts() as interruption:
            _parse(parser, onnx_path, runtime)
            _check_network(network, onnx_path, max_batch)
            config = builder.create_builder_config()
            configure(api, config, runtime, target, workspace_mib)
            add_batch_profile(builder, network, config, max_batch)
            cache, reused = use_timing_cache(config, timing_cache, notes)
            monitor = attach_monitor(api, config, progress, interruption)
            plan = _serialize(builder, network, config)
        monitor.raise_failure()
        if plan is None:
            raise _build_error(onnx_path, runtime, target, records)
        seconds = time.perf_counter() - started
        with files.atomic_path(out) as temporary:
            temporary.write_bytes(plan)
        if cache is not None and timing_cache is not None:
            with files.atomic_path(timing_cache) as temporary:
                temporary.write_bytes(engine_api.as_bytes(cache.serialize()))
        notes.extend(r.message for r in records if r.severity == "WARNING")
        return EngineBuildResult(
            plan=out,
            sha256=hashlib.sha256(plan).hexdigest(),
            size_bytes=len(plan),
            runtime=runtime,
            runtime_version=api.__version__,
            sm=target.device.sm,
            build_seconds=seconds,
            inputs=tuple(_info(network.get_input(i)) for i in range(network.num_inputs)),
            outputs=tuple(_info(network.get_output(i)) for i in range(network.num_outputs)),
            layers=_layers(records),
            warnings=tuple(dict.fromkeys(notes)),
            timing_cache="none" if cache is None else "reused" if reused else "new",
        )


def _check_arguments(
    onnx_path: Path,
    runtime: RuntimeName,
    target: Board,
    out: Path,
    plugin_libraries: Sequence[Path],
    timing_cache: Path | None,
) -> None:
    if runtime == "tensorrt_rtx":
        if target.device.sm == 87:
            # Before the general check below, whose message would not say that no recipe can help.
            raise InputError(
                "TensorRT-RTX has no Orin: it builds nothing for SM 8.7",
                where=f"target {target.id}",
                fix="build on the board with --runtime tensorrt",
            )
        if plugin_libraries:
            raise InputError(
                "TensorRT-RTX runs no plugins",
                got=", ".join(map(str, plugin_libraries)),
                fix="give it the native lowering of the graph, without plugin libraries",
            )
        if timing_cache is not None:
            raise InputError(
                "TensorRT-RTX has no use for a timing cache: it times no kernels when it builds",
                got=str(timing_cache),
                fix="leave the timing cache out",
            )
    target.runtime(runtime)
    if not onnx_path.is_file():
        raise InputError("there is no such ONNX file", where=str(onnx_path))
    if out.is_dir():
        raise InputError(
            "the plan's name is a folder", where=str(out), expected="the name of a file"
        )
    # Minutes of building should not end at a folder that cannot be made.
    files.require_folder(out.parent)


def require_gpu(target: Board, command: str) -> None:
    """Check that the GPU of this machine is the target's.

    Args:
        target: The board.
        command: What to type there, for the message.

    Raises:
        EnvironmentMissingError: It is another, or there is none.
    """
    driver = probe.cuda_driver()
    wanted = probe.format_sm(target.device.sm)
    if driver.reason is None and driver.gpus[0].sm == target.device.sm:
        return
    gpu = driver.gpus[0] if driver.gpus else None
    got = driver.reason or (f"{gpu.name}, {probe.format_sm(gpu.sm)}" if gpu else "no GPU")
    raise EnvironmentMissingError(
        f"TensorRT builds for the GPU that it runs on, and this machine has no {wanted}",
        where=f"target {target.id}",
        got=got,
        expected=f"{target.device.gpu}, {wanted}",
        fix=f"copy the folder to the board and run there: {command}",
    )


def _require_version(api: EngineApi, runtime: RuntimeName, target: Board) -> None:
    supported = target.runtime(runtime).version
    if not version_in(api.__version__, supported):
        raise EnvironmentMissingError(
            f"this version of {PRODUCT_NAMES[runtime]} is not supported on {target.id}",
            got=api.__version__,
            expected=supported,
            fix=f"install a supported version, or change runtime.version in a copy of "
            f"{target.id}.toml",
        )


def _parse(parser: OnnxParser, onnx_path: Path, runtime: RuntimeName) -> None:
    done = parser.parse_from_file(str(onnx_path))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if done and not errors:
        return
    reasons = [_parser_message(error) for error in errors] or ["no reason given"]
    fix = None
    if any("plugin not found" in reason.lower() for reason in reasons):
        fix = (
            "TensorRT-RTX runs standard ops only: give it the native lowering of the graph"
            if runtime == "tensorrt_rtx"
            else "build the plugin library on this machine and pass it to the build"
        )
    raise InputError(
        f"{PRODUCT_NAMES[runtime]} cannot parse the graph",
        where=str(onnx_path),
        got=reasons[0] if len(reasons) == 1 else "".join(f"\n    {r}" for r in reasons),
        fix=fix,
    )


def _parser_message(error: ParserError) -> str:
    # The parser's texts are C++ assertions: 'creator && "Plugin not found, ..."'. The part in
    # quotes is the sentence; without one the assertion itself says what did not hold.
    text = error.desc().strip()
    quoted = re.search(r'&& "(.+)"', text)
    reason = quoted[1] if quoted else text
    index = error.node()
    if index < 0:
        return reason
    # TensorRT 10.0 and 10.1 know a node only by its index.
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    where = f"node {name!r}" if name else f"node number {index}"
    return f"{where} ({operator}): {reason}" if operator else f"{where}: {reason}"


def _check_network(network: Network, onnx_path: Path, max_batch: int | None) -> None:
    if network.num_outputs == 0:
        raise InputError("the graph has no outputs", where=str(onnx_path))
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        open_axes = [axis for axis, extent in enumerate(tensor.shape) if extent < 0]
        if open_axes and (max_batch is None or open_axes != [0]):
            raise InputError(
                "the graph has an input whose shape is not fixed",
                where=f"{onnx_path}: input {tensor.name!r}",
                got=str(tuple(tensor.shape)),
                fix="export the model with a fixed batch and image size",
            )


def _serialize(builder: Builder, network: Network, config: BuilderConfig) -> bytes | None:
    memory = builder.build_serialized_network(network, config)
    # A copy: the library's buffer goes with `memory`, and plans are small beside the build's peak.
    return bytes(engine_api.as_bytes(memory)) if memory is not None and memory.nbytes else None


def _build_error(
    onnx_path: Path, runtime: RuntimeName, target: Board, records: list[LogRecord]
) -> InputError:
    errors = [record.message for record in records if record.is_error]
    messages = errors or [record.message for record in records]
    shown = messages[-_MESSAGES_SHOWN:] or ["the library logged nothing"]
    hints = [hint for pattern, hint in _HINTS if any(re.search(pattern, m) for m in messages)]
    return InputError(
        f"{PRODUCT_NAMES[runtime]} cannot build the graph for {target.id}",
        where=str(onnx_path),
        got=shown[0] if len(shown) == 1 else "".join(f"\n    {message}" for message in shown),
        fix="; ".join(hints) or None,
    )


def _info(tensor: Tensor) -> TensorInfo:
    return TensorInfo(tensor.name, tuple(tensor.shape), tensor.dtype.name.lower())


def _layers(records: list[LogRecord]) -> tuple[str, ...]:
    # The engine inspector would need the engine loaded, which takes a GPU. The log does not.
    for heading in (engine_api.DETAILED_LAYERS, engine_api.LAYER_INFORMATION):
        for record in records:
            if record.message.startswith(heading):
                lines = (line.strip() for line in record.message.splitlines()[1:])
                return tuple(line for line in lines if line)
    return ()
