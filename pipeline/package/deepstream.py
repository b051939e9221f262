# SPDX-License-Identifier: Apache-2.0
"""The package for DeepStream: nvinfer's configuration, labels, and a graph made for nvinfer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stormrt.errors import InputError
from stormrt.pipeline.package.deepstream_graph import (
    PROBABILITIES,
    Agreement,
    compare_graphs,
    wrap_graph,
)
from stormrt.pipeline.package.engine_files import AUTOLOAD_PATH, EngineFiles, engine_files
from stormrt.pipeline.package.model import PackagedModel
from stormrt.pipeline.package.parts import PackageFile, text
from stormrt.pipeline.package.schema_deepstream import NETWORK_MODES, NvInferProperty
from stormrt.pipeline.schema import ENGINE_NAME, GOLDEN_NAME, MODEL_NAME

CONFIG_NAME = "config_infer.txt"
GRAPH_NAME = "model_deepstream.onnx"
LABELS_NAME = "labels.txt"
_PIXEL_MAX = 255


@dataclass(frozen=True, slots=True)
class DeepStreamFiles:
    """The package, and how near its graph is to the bundle's."""

    files: tuple[PackageFile, ...]
    shared: EngineFiles
    agreement: Agreement | None
    """None: not run; ``not_run`` says why."""
    not_run: str


def properties(model: PackagedModel) -> NvInferProperty:
    """The configuration. Paths are relative to it."""
    cut = model.preprocessing
    return NvInferProperty(
        network_mode=NETWORK_MODES[model.manifest.precision],
        model_engine_file=ENGINE_NAME,
        custom_lib_path=AUTOLOAD_PATH if model.needs_plugins else None,
        labelfile_path=LABELS_NAME,
        batch_size=model.batch,
        net_scale_factor=1 / _PIXEL_MAX,
        offsets=";".join(f"{m * _PIXEL_MAX:.6g}" for m in cut.mean),
        output_blob_names=PROBABILITIES,
    )


def files(model: PackagedModel) -> DeepStreamFiles:
    """The files of the package.

    Raises:
        InputError: A class name has a semicolon, or the graph is damaged.
        EnvironmentMissingError: onnx is not installed.
    """
    for name in model.classes:
        if ";" in name:
            raise InputError(
                "a class name has a semicolon, which parts names in DeepStream's labels",
                got=name,
                fix="give other names with --labels FILE",
            )
    std = model.preprocessing.std
    graph = wrap_graph(model.folder / MODEL_NAME, std)
    agreement, not_run = None, "not run: the graph has plugin nodes, which onnxruntime has not"
    if model.manifest.lowering == "native":
        agreement = compare_graphs(
            model.folder / MODEL_NAME, graph, model.folder / GOLDEN_NAME, std, model.batch
        )
        not_run = "not run: onnxruntime is not installed"
    shared = engine_files(model, graph=PackageFile(GRAPH_NAME, graph))
    if model.batch > 1 and not model.manifest.model.dynamic_batch:
        note = (
            f"the engine's batch is fixed: nvinfer must be given {model.batch} frames at once "
            f"(nvstreammux batch-size={model.batch}, as many sources)"
        )
        shared = replace(shared, notes=(*shared.notes, note))
    own = (
        text(CONFIG_NAME, to_config(properties(model))),
        text(LABELS_NAME, ";".join(model.classes) + "\n"),
    )
    return DeepStreamFiles((*own, *shared.files), shared, agreement, not_run)


def to_config(group: NvInferProperty) -> str:
    """The group as nvinfer reads it."""
    lines = ["# SPDX-License-Identifier: Apache-2.0", "[property]"]
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if value is None:
            continue
        if field.description:
            lines.append(f"# {field.description}")
        lines.append(f"{field.alias or name}={value}")
    return "\n".join(lines) + "\n"
