# SPDX-License-Identifier: Apache-2.0
"""How a builder is told what a recipe says: scratch memory, GPU, range of batches, timing cache.

Nothing of it is a precision: those are in the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from stormrt.errors import InputError
from stormrt.pipeline import probe
from stormrt.pipeline.device.board import Board
from stormrt.pipeline.engine_api import (
    Builder,
    BuilderConfig,
    EngineApi,
    Network,
    RtxApi,
    RtxBuilderConfig,
    TimingCache,
)

if TYPE_CHECKING:
    from stormrt.targets import RuntimeName

_MIB = 1 << 20


def network_flags(api: EngineApi) -> int:
    """Flags of a strongly typed network."""
    # Its number changed from 1 to 0 in TensorRT 11, where every network is strongly typed.
    flag = api.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    return 0 if flag is None else 1 << int(flag)


def configure(
    api: EngineApi,
    config: BuilderConfig,
    runtime: RuntimeName,
    target: Board,
    workspace_mib: int | None,
) -> None:
    """Set what the recipe says of a build.

    Args:
        api: The module that builds.
        config: What is set.
        runtime: Its name.
        target: The board.
        workspace_mib: Most scratch memory of a layer, in MiB; the recipe's unless given.

    Raises:
        InputError: TensorRT-RTX builds nothing for the board's GPU.
    """
    config.set_memory_pool_limit(
        api.MemoryPoolType.__members__["WORKSPACE"],
        (workspace_mib or target.build.workspace_mib) * _MIB,
    )
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = target.build.builder_optimization_level
    tf32 = api.BuilderFlag.__members__.get("TF32")
    if tf32 is not None:
        config.clear_flag(tf32)
    if runtime == "tensorrt_rtx":
        _set_compute_capability(cast("RtxApi", api), cast("RtxBuilderConfig", config), target)
        # It makes the builder log layers with their types. The plan gets no larger.
        config.profiling_verbosity = api.ProfilingVerbosity.__members__["DETAILED"]


def add_batch_profile(
    builder: Builder, network: Network, config: BuilderConfig, max_batch: int | None
) -> None:
    """Give every input without a fixed batch the range 1 to ``max_batch``.

    Raises:
        InputError: The builder refuses it.
    """
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if max_batch is None or all(extent >= 0 for t in inputs for extent in t.shape):
        return
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        rest = tuple(tensor.shape)[1:]
        most = (max_batch, *rest)
        profile.set_shape(tensor.name, (1, *rest), most, most)
    if config.add_optimization_profile(profile) < 0:
        raise InputError("the range of batches was refused", got=f"1 to {max_batch}")


def use_timing_cache(
    config: BuilderConfig, path: Path | None, notes: list[str]
) -> tuple[TimingCache | None, bool]:
    """Have a build use a file of kernel timings.

    Args:
        config: Of the build.
        path: The file, which need not be there; None: no cache.
        notes: Gets what was done otherwise than asked.

    Returns:
        The cache that the build uses, if any, and whether it holds what is in the file.

    Raises:
        InputError: The file is there and cannot be read.
    """
    if path is None:
        return None, False
    if not hasattr(config, "create_timing_cache"):
        notes.append("this TensorRT has no timing cache")
        return None, False
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        stored = b""
    except OSError as error:
        raise InputError(
            "the timing cache cannot be read",
            where=str(path),
            got=error.strerror or str(error),
        ) from error
    cache = config.create_timing_cache(stored)
    if cache is not None and config.set_timing_cache(cache, False):
        return cache, bool(stored)
    # A cache belongs to one TensorRT and one GPU. An upgrade should cost time, not the build.
    notes.append(f"the timing cache {path} is of another TensorRT or GPU and was made anew")
    cache = config.create_timing_cache(b"")
    if cache is None or not config.set_timing_cache(cache, False):
        notes.append("TensorRT accepts no timing cache here; the build was done without one")
        return None, False
    return cache, False


def _set_compute_capability(api: RtxApi, config: RtxBuilderConfig, target: Board) -> None:
    capabilities = api.ComputeCapability.__members__
    capability = capabilities.get(f"SM{target.device.sm}")
    if capability is not None:
        config.num_compute_capabilities = 1
        if config.set_compute_capability(capability, 0):
            return
    raise InputError(
        f"TensorRT-RTX {api.__version__} builds nothing for {probe.format_sm(target.device.sm)}",
        where=f"target {target.id}: device.sm",
        got=str(target.device.sm),
        expected=", ".join(name[2:] for name in capabilities if name.startswith("SM")),
    )
