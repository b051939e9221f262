# SPDX-License-Identifier: Apache-2.0
"""Golden data: photographs and what FP32 PyTorch makes of them, in one file.

Boards read it too, without PyTorch: ``device.golden``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME, GoldenData, ModelSpec
from stormrt.pipeline.device.golden import read_golden as read_golden
from stormrt.pipeline.files import atomic_path
from stormrt.pipeline.model_source import build_model
from stormrt.pipeline.onnx_file import digest_of
from stormrt.pipeline.photographs import preprocess_all


def make_golden(spec: ModelSpec, photographs: Sequence[Path], out: Path) -> GoldenData:
    """Run the reduced model in FP32 on the photographs and write inputs and outputs.

    The file holds ``images`` [n, 3, H, W] and ``logits`` [n, classes], both FP32, and ``sources``,
    n names.

    Raises:
        InputError: A photograph or the checkpoint is bad, or the outputs are not finite.
    """
    images = preprocess_all(photographs, spec.height, spec.width)
    model = build_model(spec)
    with torch.inference_mode():
        # One image at a time: results must not depend on how a machine batches them.
        logits = np.concatenate([model(torch.from_numpy(i[None])).numpy() for i in images])
    if not np.isfinite(logits).all():
        raise InputError(
            "PyTorch's own outputs are not finite",
            where=spec.checkpoint or "seeded weights",
            fix="check the checkpoint: nothing can be validated against NaN or infinity",
        )
    sources = tuple(path.name for path in photographs)
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        arrays = {INPUT_NAME: images, OUTPUT_NAME: logits, "sources": np.array(sources)}
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return GoldenData(digest_of(out), len(images), sources)
