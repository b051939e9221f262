# SPDX-License-Identifier: Apache-2.0
"""The package for Isaac ROS: a launch file, its parameters, and the engine beside them."""

from __future__ import annotations

import json

from pydantic import BaseModel

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME
from stormrt.pipeline.package.engine_files import AUTOLOAD_PATH, EngineFiles, engine_files
from stormrt.pipeline.package.model import PackagedModel
from stormrt.pipeline.package.parts import PackageFile, template, text
from stormrt.pipeline.package.schema_isaac_ros import ImageEncoder, ParameterFile, TensorRtNode
from stormrt.pipeline.schema import ENGINE_NAME, MODEL_NAME

TENSOR_NAME = "input_tensor"
"""Of the tensor in the encoder's messages; the binding has the graph's name."""
OUTPUT_TENSOR_NAME = "output_tensor"
PARAMETERS_NAME = "params.yaml"
LAUNCH_NAME = "stormrt.launch.py"


def parameters(model: PackagedModel) -> ParameterFile:
    """What the launch file reads. Paths are relative to it."""
    _, height, width = model.input_dims
    cut = model.preprocessing
    return ParameterFile(
        tensor_rt_node=TensorRtNode(
            model_file_path=MODEL_NAME,
            engine_file_path=ENGINE_NAME,
            custom_plugin_lib=AUTOLOAD_PATH if model.needs_plugins else None,
            input_tensor_names=(TENSOR_NAME,),
            input_binding_names=(INPUT_NAME,),
            output_tensor_names=(OUTPUT_TENSOR_NAME,),
            output_binding_names=(OUTPUT_NAME,),
            force_engine_update=False,
            max_batch_size=model.batch,
        ),
        dnn_image_encoder=ImageEncoder(
            network_image_width=width,
            network_image_height=height,
            image_mean=cut.mean,
            image_stddev=cut.std,
            final_tensor_name=TENSOR_NAME,
        ),
        resize_ratio=cut.resize_ratio,
    )


def files(model: PackagedModel) -> tuple[tuple[PackageFile, ...], EngineFiles]:
    """The files of the package.

    Raises:
        InputError: The engine's batch is fixed and not 1: the encoder makes batches of 1.
    """
    if not model.manifest.model.dynamic_batch and model.batch != 1:
        raise InputError(
            "Isaac ROS's image encoder makes batches of 1, and the engine takes another",
            where="batch of the bundle",
            got=str(model.batch),
            expected="1",
            fix="build the bundle again with --batch 1, or with --dynamic-batch",
        )
    shared = engine_files(model)
    own = (
        text(PARAMETERS_NAME, to_yaml(parameters(model))),
        PackageFile(LAUNCH_NAME, template("isaac_ros/stormrt.launch.py.template", {})),
        text("labels.txt", "".join(f"{name}\n" for name in model.classes)),
    )
    return (*own, *shared.files), shared


def to_yaml(model: BaseModel) -> str:
    """A model as block YAML; every value is written as JSON writes it, which YAML reads."""
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        "# Read by stormrt.launch.py; paths begin there.",
    ]
    lines += _yaml_lines(model.model_dump(mode="json", exclude_none=True), "")
    return "\n".join(lines) + "\n"


def _yaml_lines(table: dict[str, object], indent: str) -> list[str]:
    lines = []
    for key, value in table.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_yaml_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {json.dumps(value)}")
    return lines
