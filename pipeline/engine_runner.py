# SPDX-License-Identifier: Apache-2.0
"""Runs an engine on this machine's GPU through Polygraphy, for validation on the workstation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import InputError
from stormrt.pipeline import engine_api
from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME
from stormrt.pipeline.comparison import batches, compare_images
from stormrt.pipeline.metrics import Metrics
from stormrt.targets import RuntimeName


@contextmanager
def open_engine(
    plan: Path, runtime: RuntimeName, plugin_libraries: Sequence[Path] = ()
) -> Iterator[Callable[[NDArray[np.float32]], NDArray[np.float32]]]:
    """Load an engine for the context.

    Args:
        plan: The serialized engine.
        runtime: The package that built it.
        plugin_libraries: Libraries with its plugins, where this process has not loaded them.

    Yields:
        A function: images [B, 3, H, W], B the engine's batch, -> logits [B, classes], both FP32.

    Raises:
        InputError: The runtime refuses the plan: it is damaged, or of another version or GPU.
    """
    from polygraphy import config

    # Polygraphy reads this when it first imports a TensorRT, which is in the next line.
    config.USE_TENSORRT_RTX = runtime == "tensorrt_rtx"
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.exception import PolygraphyException

    if plugin_libraries:
        engine_api.load_plugin_libraries(engine_api.load_api(runtime), plugin_libraries)
    try:
        with TrtRunner(EngineFromBytes(plan.read_bytes())) as runner:
            # A copy: the runner's next call writes to the same memory.
            yield lambda images: np.array(runner.infer({INPUT_NAME: images})[OUTPUT_NAME])
    except PolygraphyException as error:
        raise InputError(
            f"{runtime} could not run the engine",
            where=str(plan),
            got=str(error).splitlines()[0],
            fix="build the engine again on this machine",
        ) from error


def run_engine(
    plan: Path,
    runtime: RuntimeName,
    images: NDArray[np.float32],
    logits: NDArray[np.float32],
    batch: int,
) -> Metrics:
    """Run an engine on the golden images and compare with PyTorch's logits.

    Args:
        plan: The serialized engine.
        runtime: The package that built it.
        images: [n, 3, H, W].
        logits: [n, classes] of FP32 PyTorch.
        batch: The engine's batch.

    Raises:
        InputError: The runtime refuses the plan: it is damaged, or of another version or GPU.
    """
    with open_engine(plan, runtime) as run:
        outputs = [run(part)[:count] for part, count in batches(images, batch)]
    return compare_images(np.concatenate(outputs), logits)
