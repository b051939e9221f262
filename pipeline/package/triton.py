# SPDX-License-Identifier: Apache-2.0
"""The package for Triton: a model repository, and a client that knows the preprocessing."""

from __future__ import annotations

import json

from pydantic import BaseModel

from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME
from stormrt.pipeline.package.engine_files import EngineFiles, engine_files
from stormrt.pipeline.package.model import PackagedModel
from stormrt.pipeline.package.parts import PackageFile, template, text
from stormrt.pipeline.package.schema_triton import (
    ENUMERATED,
    DynamicBatching,
    Input,
    InstanceGroup,
    ModelConfig,
    Output,
)
from stormrt.pipeline.schema import GOLDEN_NAME

REPOSITORY = "model_repository"
PLAN_NAME = "model.plan"
VERSION = "1"
LABELS_NAME = "labels.txt"


def config(model: PackagedModel) -> ModelConfig:
    """The model's configuration."""
    dynamic = model.manifest.model.dynamic_batch
    batch = () if dynamic else (model.batch,)
    return ModelConfig(
        name=model.name,
        max_batch_size=model.batch if dynamic else 0,
        default_model_filename=PLAN_NAME,
        input=(Input(name=INPUT_NAME, data_type="TYPE_FP32", dims=(*batch, *model.input_dims)),),
        output=(
            Output(
                name=OUTPUT_NAME,
                data_type="TYPE_FP32",
                dims=(*batch, model.manifest.model.num_classes),
                label_filename=LABELS_NAME,
            ),
        ),
        instance_group=(InstanceGroup(),),
        dynamic_batching=DynamicBatching() if dynamic else None,
    )


def files(model: PackagedModel) -> tuple[tuple[PackageFile, ...], EngineFiles]:
    """The files of the package."""
    folder = f"{REPOSITORY}/{model.name}"
    shared = engine_files(model, engine_path=f"{folder}/{VERSION}/{PLAN_NAME}")
    _, height, width = model.input_dims
    cut = model.preprocessing
    client = {
        "model": json.dumps(model.name),
        "input": json.dumps(INPUT_NAME),
        "output": json.dumps(OUTPUT_NAME),
        "batch": "1" if model.manifest.model.dynamic_batch else str(model.batch),
        "height": str(height),
        "width": str(width),
        "mean": repr(cut.mean),
        "std": repr(cut.std),
        "resize_ratio": repr(cut.resize_ratio),
        "labels": json.dumps(f"{folder}/{LABELS_NAME}"),
        "golden": json.dumps(GOLDEN_NAME),
    }
    own = (
        text(f"{folder}/config.pbtxt", to_pbtxt(config(model))),
        text(f"{folder}/{LABELS_NAME}", "".join(f"{name}\n" for name in model.classes)),
        PackageFile("client.py", template("triton/client.py.template", client), is_program=True),
        PackageFile(GOLDEN_NAME, model.folder / GOLDEN_NAME),
    )
    return (*own, *shared.files), shared


def to_pbtxt(message: BaseModel, indent: str = "") -> str:
    """A message in protobuf's text format."""
    lines = [] if indent else ["# SPDX-License-Identifier: Apache-2.0\n"]
    for name in type(message).model_fields:
        value = getattr(message, name)
        if isinstance(value, BaseModel) or (
            isinstance(value, tuple) and value and isinstance(value[0], BaseModel)
        ):
            for inner in value if isinstance(value, tuple) else (value,):
                body = to_pbtxt(inner, indent + "  ")
                lines.append(f"{indent}{name} {{\n{body}{indent}}}\n")
        elif value is not None:
            lines.append(f"{indent}{name}: {_scalar(name, value)}\n")
    return "".join(lines)


def _scalar(name: str, value: object) -> str:
    if name in ENUMERATED:
        return str(value)
    # JSON's texts and lists are the text format's too.
    return json.dumps(value)
