# SPDX-License-Identifier: Apache-2.0
"""Bundles of the fake TensorRT's graphs, as ``stormrt build`` leaves them on a workstation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stormrt.pipeline.artifacts import FileDigest, ModelSpec, PluginUse
from stormrt.pipeline.files import sha256_file
from stormrt.pipeline.schema import (
    FP16_MODEL_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    Fallback,
    Manifest,
)
from stormrt.storm.plan import StormPlan
from stormrt.targets import dump_target, load_target
from tests.pipeline.device.fake_builder import graph_bytes
from tests.runtime.fake_trt import CLASSES, ITEM, model

IMAGES = 5
"""No multiple of the batches."""


def digest_of(path: Path) -> FileDigest:
    return FileDigest(path.name, sha256_file(path), path.stat().st_size)


def make_bundle(
    folder: Path,
    rng: np.random.Generator,
    *,
    batch: int = 1,
    dynamic: bool = False,
    int8: bool = False,
    error: float = 0.0,
    refused: str | None = None,
    plugins: tuple[PluginUse, ...] = (),
    target: str = "t4",
) -> Path:
    """A bundle for full TensorRT. ``error``: how far its logits are from the golden ones."""
    folder.mkdir(parents=True)
    images = rng.normal(0, 1, (IMAGES, *ITEM)).astype(np.float32)
    logits = model(images)
    noise = rng.normal(0, 1, logits.shape).astype(np.float32)
    logits += error * noise * np.linalg.norm(logits) / np.linalg.norm(noise)
    sources = np.array([f"{n}.png" for n in range(IMAGES)])
    np.savez(folder / GOLDEN_NAME, images=images, logits=logits, sources=sources)
    (folder / MODEL_NAME).write_bytes(graph_bytes(batch, dynamic=dynamic))
    names = [MODEL_NAME, GOLDEN_NAME]
    if int8:
        (folder / FP16_MODEL_NAME).write_bytes(graph_bytes(batch, dynamic=dynamic) + b" ")
        names.append(FP16_MODEL_NAME)
    recipe = dump_target(load_target(target))
    manifest = Manifest(
        stormrt_version="0",
        model=ModelSpec(
            "small", CLASSES, None, None, 0, ITEM[1], ITEM[2], batch, dynamic, StormPlan()
        ),
        target=target,
        recipe=recipe,
        precision="int8" if int8 else "fp16",
        runtime="tensorrt",
        lowering="plugin",
        plugins=plugins,
        engine=None,
        fp16=Fallback(model=digest_of(folder / FP16_MODEL_NAME), engine=None) if int8 else None,
        refused=refused,
        files=tuple(digest_of(folder / name) for name in names),
        tools=(),
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return folder
