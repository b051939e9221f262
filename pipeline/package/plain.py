# SPDX-License-Identifier: Apache-2.0
"""The package for a C++ program of one's own: a complete one to begin with."""

from __future__ import annotations

import json

from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME
from stormrt.pipeline.device.golden import read_golden
from stormrt.pipeline.package.engine_files import CORE_PATH, EngineFiles, engine_files
from stormrt.pipeline.package.model import PackagedModel
from stormrt.pipeline.package.parts import PackageFile, template
from stormrt.pipeline.probe import format_sm
from stormrt.pipeline.schema import GOLDEN_NAME

RUNTIMES = ("tensorrt", "tensorrt_rtx")
GOLDEN_IMAGES = 4
"""Photographs of the golden data that go with the program: enough to see a wrong engine."""


def files(model: PackagedModel) -> tuple[tuple[PackageFile, ...], EngineFiles]:
    """The files of the package."""
    shared = engine_files(model, runtimes=RUNTIMES)
    images, logits = _golden(model)
    build = {"runtime": runtime(model)}
    own = (
        PackageFile("CMakeLists.txt", template("plain/CMakeLists.txt.template", build)),
        PackageFile("classify.cpp", template("plain/classify.cpp", {})),
        PackageFile("preprocess.h", template("plain/preprocess.h", {})),
        PackageFile("model.h", template("plain/model.h.template", _constants(model))),
        PackageFile("golden_images.f32", images),
        PackageFile("golden_logits.f32", logits),
    )
    return (*own, *shared.files), shared


def runtime(model: PackagedModel) -> str:
    """What the program is linked against: the engine's runtime, else TensorRT."""
    return model.manifest.engine.runtime if model.manifest.engine else "tensorrt"


def _constants(model: PackagedModel) -> dict[str, str]:
    _, height, width = model.input_dims
    cut = model.preprocessing
    recipe = model.target.tolerance_for(model.manifest.precision, model.manifest.runtime)
    engine = model.manifest.engine
    built_by = (
        f"{engine.runtime} {engine.runtime_version} for {format_sm(engine.sm)}"
        if engine
        else "build_engine.sh"
    )
    return {
        "name": _cpp(model.name),
        "built_by": _cpp(built_by),
        "plugins": _cpp(CORE_PATH if model.needs_plugins else ""),
        "input": _cpp(INPUT_NAME),
        "output": _cpp(OUTPUT_NAME),
        "batch": "1" if model.manifest.model.dynamic_batch else str(model.batch),
        "height": str(height),
        "width": str(width),
        "classes": str(len(model.classes)),
        "mean": ", ".join(f"{m!r}f" for m in cut.mean),
        "std": ", ".join(f"{s!r}f" for s in cut.std),
        "resize_ratio": repr(cut.resize_ratio),
        "labels": "\n".join(f"    {_cpp(name)}," for name in model.classes),
        "rel_l2": repr(recipe.rel_l2),
        "argmax_agreement": repr(recipe.argmax_agreement),
    }


def _cpp(value: str) -> str:
    # Printable texts alone come here: of those JSON escapes only what C++ escapes the same way.
    return json.dumps(value, ensure_ascii=False)


def _golden(model: PackagedModel) -> tuple[bytes, bytes]:
    """The first photographs and PyTorch's logits, as raw FP32: C++ has no reader for npz."""
    images, logits, _ = read_golden(model.folder / GOLDEN_NAME)
    first = slice(GOLDEN_IMAGES)
    return images[first].astype("<f4").tobytes(), logits[first].astype("<f4").tobytes()
