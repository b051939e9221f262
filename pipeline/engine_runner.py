# SPDX-License-Identifier: Apache-2.0
"""Runs an engine on this machine's GPU through Polygraphy, for validation on the workstation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME
from stormrt.pipeline.comparison import batches, compare_images
from stormrt.pipeline.metrics import Metrics
from stormrt.targets import RuntimeName


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
    from polygraphy import config

    # Polygraphy reads this when it first imports a TensorRT, which is in the next line.
    config.USE_TENSORRT_RTX = runtime == "tensorrt_rtx"
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.exception import PolygraphyException

    outputs = []
    try:
        with TrtRunner(EngineFromBytes(plan.read_bytes())) as runner:
            for part, count in batches(images, batch):
                result = runner.infer({INPUT_NAME: part})
                outputs.append(np.array(result[OUTPUT_NAME])[:count])
    except PolygraphyException as error:
        raise InputError(
            f"{runtime} could not run the engine",
            where=str(plan),
            got=str(error).splitlines()[0],
            fix="build the engine again on this machine",
        ) from error
    return compare_images(np.concatenate(outputs), logits)
