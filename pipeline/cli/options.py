# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs have, written once."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stormrt.errors import InputError
from stormrt.targets import RuntimeName

ModelOption = Annotated[str, typer.Option("--model", help="Variant, such as vmamba_tiny_s1l8.")]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="Weights (.pth or .safetensors). Default: those that come with the package for this "
        "model, else random ones, seeded.",
    ),
]
ClassesOption = Annotated[
    int | None, typer.Option("--classes", help="Outputs of the classifier. Default: the model's.")
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size", help="Image size in pixels: 224 or 480x640 (HxW). Default: the model's."
    ),
]
BatchOption = Annotated[int, typer.Option("--batch", help="Images a call.")]
DynamicOption = Annotated[
    bool, typer.Option("--dynamic-batch", help="Any batch from 1 to --batch, instead of just it.")
]
StormOption = Annotated[
    str,
    typer.Option(
        "--storm",
        help="Token reduction: keep=R[,host=NAME][,stage=S][,block=B][,unit=line|window]"
        "[,mode=drop|merge][,restore=no|stage|end], a budget (flops=0.75), or a plan's JSON file.",
    ),
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="fp32, fp16 or int8. Default: the recipe's.")
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="For INT8: a table that `stormrt calibrate` made (.json), or images to calibrate on: "
        "a folder or an npz. FP16 takes from it which values it cannot hold.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the random weights.")]


class Runtime(str, Enum):
    """Runtimes by their package names."""

    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt_rtx"


class ExecutorName(str, Enum):
    """What can run the model."""

    torch = "torch"
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"


class ModelPrecision(str, Enum):
    """Precisions of the model."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


ExecutorOption = Annotated[
    ExecutorName,
    typer.Option(
        "--runtime",
        help="torch: the PyTorch model. onnxruntime: the graph that a build makes. tensorrt: its "
        "engine, on this machine's GPU.",
    ),
]
ModelPrecisionOption = Annotated[
    ModelPrecision, typer.Option("--precision", help="Precision; int8 needs --calibration.")
]
EngineTargetOption = Annotated[
    str | None,
    typer.Option(
        "--target", help="Recipe of the engine, for --runtime tensorrt. Default: by this GPU."
    ),
]
WorkOption = Annotated[
    Path | None,
    typer.Option(
        "--work", help="Keep graphs and engine in this folder, so that the next run is quicker."
    ),
]


def runtime_name(runtime: Runtime | None) -> RuntimeName | None:
    """The option's value as the pipeline wants it."""
    return None if runtime is None else runtime.value


def parse_size(text: str | None) -> tuple[int, int] | tuple[None, None]:
    """``224`` or ``480x640`` -> height and width in pixels; None -> the model's own.

    Raises:
        InputError: The text is neither.
    """
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip())
    if match is None:
        raise InputError(
            "the image size was not understood",
            where="--size",
            got=text,
            expected="a side such as 224, or height x width such as 480x640",
        )
    height = int(match[1])
    return height, int(match[2] or height)
