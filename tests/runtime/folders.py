# SPDX-License-Identifier: Apache-2.0
"""Output folders with the fake TensorRT's engines."""

from __future__ import annotations

import hashlib
from pathlib import Path

from stormrt.pipeline.artifacts import EngineArtifact, FileDigest, ModelSpec, PluginUse
from stormrt.pipeline.files import sha256_file, write_text
from stormrt.pipeline.schema import (
    ENGINE_NAME,
    FP16_ENGINE_NAME,
    MANIFEST_NAME,
    Fallback,
    Manifest,
)
from stormrt.plugins.builder import CORE_NAME
from stormrt.storm.plan import StormPlan
from stormrt.targets import dump_target, load_target
from tests.runtime.fake_trt import CLASSES, ITEM, VERSION, plan_bytes

SCAN = PluginUse("SelectiveScan2D", "1", 14)


def digest_of(path: Path, name: str | None = None) -> FileDigest:
    return FileDigest(name or path.name, sha256_file(path), path.stat().st_size)


def write_folder(
    folder: Path,
    plan: bytes | None = None,
    *,
    runtime: str = "tensorrt",
    version: str = VERSION,
    sm: int = 75,
    plugins: tuple[PluginUse, ...] = (),
    built: bool = True,
    refused: str | None = None,
    fp16_plan: bytes | None = None,
) -> Path:
    """A folder as ``stormrt build`` leaves it, as far as the runner reads it."""
    folder.mkdir(exist_ok=True)
    plan = plan_bytes() if plan is None else plan
    spec = ModelSpec("small", CLASSES, None, None, 0, ITEM[1], ITEM[2], 1, False, StormPlan())
    engine = None
    if built:
        (folder / ENGINE_NAME).write_bytes(plan)
        engine = EngineArtifact(digest_of(folder / ENGINE_NAME), runtime, version, sm)
    fp16 = None
    if fp16_plan is not None:
        (folder / FP16_ENGINE_NAME).write_bytes(fp16_plan)
        beside = EngineArtifact(digest_of(folder / FP16_ENGINE_NAME), runtime, version, sm)
        fp16 = Fallback(model=FileDigest("model.fp16.onnx", "0" * 64, 1), engine=beside)
    manifest = Manifest(
        stormrt_version="0",
        model=spec,
        target="t4",
        recipe=dump_target(load_target("t4")),
        precision="fp16",
        runtime=runtime,
        lowering="plugin" if plugins else "native",
        plugins=plugins,
        engine=engine,
        fp16=fp16,
        refused=refused,
        files=(),
        tools=(),
    )
    write_text(folder / MANIFEST_NAME, manifest.to_json())
    return folder


def write_library(folder: Path, content: bytes = b"a library") -> tuple[Path, str]:
    """A plugin library where a build on the target leaves it, and its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CORE_NAME
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()
