# SPDX-License-Identifier: Apache-2.0
"""Bundles for the tests of packages: a tiny classifier in ONNX, made without PyTorch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import stormrt
from stormrt.pipeline.artifacts import EngineArtifact, FileDigest, ModelSpec, PluginUse
from stormrt.pipeline.preprocessing import MEAN, STD
from stormrt.pipeline.schema import (
    ENGINE_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    Manifest,
)
from stormrt.plugins.builder import AUTOLOAD_NAME, CORE_NAME
from stormrt.storm.plan import StormPlan
from stormrt.targets import dump_target, load_target
from tests.helpers.seeds import generator

CLASSES = ("brick", "cat", "coffee cup", 'a "quoted" name', "Köln")
HEIGHT, WIDTH = 24, 32
IMAGES = 6


@dataclass(frozen=True)
class Wanted:
    """What a bundle shall be like."""

    target: str = "t4"
    engine: str | None = None
    """Runtime of its engine."""
    plugins: bool = False
    batch: int = 1
    dynamic: bool = False
    precision: str = "fp16"
    card: bool = True


def make_bundle(folder: Path, **wanted: object) -> Path:
    """Write a bundle; every file of it is as a build writes it, but for the model's size."""
    how = replace(Wanted(), **wanted)
    folder.mkdir(parents=True)
    (folder / MODEL_NAME).write_bytes(_graph(how).SerializeToString())
    _golden(folder, how)
    weights = folder.parent / f"{folder.name}-weights.safetensors"
    weights.write_bytes(b"no weights: only their card is read")
    sha256 = digest(weights).sha256
    if how.card:
        card = {"classes": CLASSES, "sha256": sha256}
        weights.with_suffix(".json").write_text(json.dumps(card))
    names = [MODEL_NAME, GOLDEN_NAME]
    engine = None
    target = load_target(how.target)
    if how.engine is not None:
        (folder / ENGINE_NAME).write_bytes(b"a plan of " + how.engine.encode())
        file = digest(folder / ENGINE_NAME)
        engine = EngineArtifact(file, how.engine, "10.3.0", target.device.sm)
        names.append(ENGINE_NAME)
    manifest = Manifest(
        stormrt_version=stormrt.__version__,
        model=ModelSpec(
            name="tiny",
            num_classes=len(CLASSES),
            checkpoint=str(weights),
            checkpoint_sha256=sha256,
            seed=0,
            height=HEIGHT,
            width=WIDTH,
            batch=how.batch,
            dynamic_batch=how.dynamic,
            plan=StormPlan(),
        ),
        target=how.target,
        recipe=dump_target(target),
        precision=how.precision,
        runtime="tensorrt" if how.plugins else "tensorrt_rtx",
        lowering="plugin" if how.plugins else "native",
        plugins=(PluginUse("SelectiveScan2D", "1", 1),) if how.plugins else (),
        engine=engine,
        files=tuple(digest(folder / name) for name in names),
        tools=(),
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return folder


def make_library(folder: Path, *, archs: tuple[str, ...] = ("sm_75",), machine: str = "x86_64"):
    """Write what looks like a plugin library beside a bundle's graph."""
    plugins = folder / "plugins"
    plugins.mkdir()
    for name in (CORE_NAME, AUTOLOAD_NAME):
        (plugins / name).write_bytes(name.encode())
    library = {
        "schema_version": 1,
        "key": "k",
        "sources": "s",
        "archs": archs,
        "machine": machine,
        "tensorrt_headers": "10.3.0",
        "nvcc": "12.6",
        "host_compiler": "11",
        "plugins": [{"name": "SelectiveScan2D", "version": "1"}],
        "files": [vars_of(plugins / name) for name in (CORE_NAME, AUTOLOAD_NAME)],
    }
    (plugins / "libstormrt_plugins.json").write_text(json.dumps(library))
    return plugins


def vars_of(path: Path) -> dict[str, object]:
    """A file's digest as JSON."""
    found = digest(path)
    return {"name": found.name, "sha256": found.sha256, "size_bytes": found.size_bytes}


def digest(path: Path) -> FileDigest:
    """A file's digest."""
    data = path.read_bytes()
    return FileDigest(path.name, hashlib.sha256(data).hexdigest(), len(data))


def golden(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and logits of a bundle."""
    with np.load(folder / GOLDEN_NAME) as data:
        return data["images"], data["logits"]


def pixels() -> np.ndarray:
    """[IMAGES, H, W, 3], uint8: what the golden images were made from."""
    return generator("pixels").integers(0, 256, (IMAGES, HEIGHT, WIDTH, 3), np.uint8)


def _golden(folder: Path, how: Wanted) -> None:
    images = (pixels() / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    logits = generator("logits").normal(size=(IMAGES, len(CLASSES))).astype(np.float32)
    if not how.plugins:
        import onnxruntime

        session = onnxruntime.InferenceSession((folder / MODEL_NAME).read_bytes())
        part = how.batch
        logits = np.concatenate(
            [session.run(None, {"images": images[i : i + part]})[0] for i in range(0, IMAGES, part)]
        )
    names = np.array([f"{i}.png" for i in range(IMAGES)])
    np.savez_compressed(folder / GOLDEN_NAME, images=images, logits=logits, sources=names)


def _graph(how: Wanted) -> onnx.ModelProto:
    """images -> (a plugin node) -> Conv -> mean over the map -> logits."""
    random = generator("weights")
    weight = random.normal(size=(len(CLASSES), 3, 3, 3)).astype(np.float32)
    batch = "batch" if how.dynamic else how.batch
    nodes = [
        helper.make_node("Conv", ["mapped", "weight"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    first = (
        helper.make_node("SelectiveScan2D", ["images"], ["mapped"], domain="stormrt")
        if how.plugins
        else helper.make_node("Identity", ["images"], ["mapped"])
    )
    graph = helper.make_graph(
        [first, *nodes],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(CLASSES)])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("stormrt", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
