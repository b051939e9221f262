# SPDX-License-Identifier: Apache-2.0
"""What every package has of the engine: the plan or the way to one, the graph, the plugins."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from stormrt.pipeline.artifacts import INPUT_NAME
from stormrt.pipeline.package.model import EngineState, PackagedModel
from stormrt.pipeline.package.parts import PackageFile, template
from stormrt.pipeline.schema import ENGINE_NAME, MODEL_NAME
from stormrt.plugins.builder import AUTOLOAD_NAME, CORE_NAME

CORE_PATH = f"plugins/{CORE_NAME}"
"""For hosts that ask TensorRT's registry to load a library."""
AUTOLOAD_PATH = f"plugins/{AUTOLOAD_NAME}"
"""For hosts that only dlopen it (docs/adr/0008)."""
SCRIPT_NAME = "build_engine.sh"


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """The part of a package that is the same for every host."""

    files: tuple[PackageFile, ...]
    state: EngineState
    notes: tuple[str, ...]
    """What must be done before the host can run it; empty where nothing must."""


def engine_files(
    model: PackagedModel,
    *,
    runtimes: tuple[str, ...] = ("tensorrt",),
    engine_path: str = ENGINE_NAME,
    graph: PackageFile | None = None,
) -> EngineFiles:
    """The plan, the graph, the plugin libraries, and the script that builds the plan.

    Args:
        model: The bundle.
        runtimes: Runtimes whose plans the host loads.
        engine_path: Where the host looks for the plan.
        graph: The graph, where the host needs another than the bundle's; the bundle's plan is then
            of no use to it.
    """
    state: EngineState = model.engine_state(runtimes) if graph is None else "not built"
    given = graph or PackageFile(MODEL_NAME, model.folder / MODEL_NAME)
    files = [given]
    engine = model.manifest.engine
    if state == "included":
        files.append(PackageFile(engine_path, model.folder / ENGINE_NAME))
    if state != "included" or engine is None or engine.runtime == "tensorrt":
        # trtexec is TensorRT's: it would put a plan of another runtime in a TensorRT-RTX plan's
        # place.
        files.append(_script(model, given.path, engine_path))
    files += [PackageFile(f"plugins/{p.name}", p) for p in model.plugin_files]
    return EngineFiles(tuple(files), state, tuple(_notes(model, state, graph is not None)))


def _script(model: PackagedModel, graph: str, engine: str) -> PackageFile:
    """A script for trtexec, with what ``pipeline.engine`` sets through TensorRT's API.

    Flags as in NVIDIA/TensorRT, samples/common/sampleOptions.cpp.
    """
    build = model.target.build
    flags = [
        f"--onnx={graph}",
        "--noTF32",
        f"--memPoolSize=workspace:{build.workspace_mib}",
        f"--builderOptimizationLevel={build.builder_optimization_level}",
        "--skipInference",
    ]
    if model.needs_plugins:
        flags.append(f"--dynamicPlugins={CORE_PATH}")
    if model.manifest.model.dynamic_batch:
        _, height, width = model.input_dims
        flags += [
            f"--{which}Shapes={INPUT_NAME}:{batch}x3x{height}x{width}"
            for which, batch in (("min", 1), ("opt", model.batch), ("max", model.batch))
        ]
    values = {
        "target": model.target.description,
        "engine": shlex.quote(engine),
        "flags": " \\\n    ".join(map(shlex.quote, flags)),
        "needs": shlex.quote(CORE_PATH) if model.needs_plugins else shlex.quote(graph),
        "target_id": model.target.id,
    }
    return PackageFile(SCRIPT_NAME, template("build_engine.sh.template", values), is_program=True)


def _notes(model: PackagedModel, state: EngineState, is_other_graph: bool) -> list[str]:
    notes = []
    if model.needs_plugins and not model.plugin_files:
        notes.append(
            "the plugin library is not in the package: on the target, "
            f"stormrt plugins build --target {model.target.id} --out PACKAGE/plugins"
        )
    if is_other_graph:
        notes.append(
            "the host needs a graph of its own, so that no plan is in the package: "
            f"./{SCRIPT_NAME} builds it on the target"
        )
    elif state == "not built":
        notes.append(
            f"the bundle has no engine: on the target, ./{SCRIPT_NAME} builds it (or build the "
            "bundle with stormrt and package it again)"
        )
    elif state == "of TensorRT-RTX":
        notes.append(
            "the bundle's engine is TensorRT-RTX's, and this host loads only TensorRT's: it was "
            f"left out, and ./{SCRIPT_NAME} builds one on the target from the same graph"
        )
    if state != "included" and model.manifest.lowering == "native":
        notes.append(
            "the graph is in its native lowering (standard ops): an engine of the plugin lowering "
            f"is made from a bundle of stormrt build --target {model.target.id} --runtime tensorrt"
        )
    if not model.classes_are_named:
        notes.append("nothing names the classes, so they are numbered: --labels FILE names them")
    return notes
