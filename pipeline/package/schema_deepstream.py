# SPDX-License-Identifier: Apache-2.0
"""What nvinfer's configuration file may say, as far as a classifier needs it.

Sources:

- keys: ``src/gst-plugins/gst-nvinfer/gstnvinfer_property_parser.h`` of NVIDIA/DeepStream on GitHub,
  at commit 2afbef0 (DeepStream 9.2); types and ranges: the ``.cpp`` beside it. nvinfer prints
  "Unknown or legacy key" for any other, and goes on;
- what they mean: docs.nvidia.com/metropolis/deepstream/dev-guide, Gst-nvinfer;
- the classifier's parser, ``parseAttributesFromSoftmaxLayers`` in
  ``src/utils/nvdsinfer/nvdsinfer_context_impl_output_parsing.cpp``: a class is found only where its
  value is above 0 and above the threshold, so that logits will not do;
- labels, ``NvDsInferContextImpl::parseLabelsFile``: one line an output, names parted by ``;``;
- filters, ``NvBufSurfTransform_Inter`` in ``nvbufsurftransform.h``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Of Gst-nvinfer's documentation, network-mode: 0 FP32, 1 INT8, 2 FP16.
NETWORK_MODES: dict[str, Literal[0, 1, 2]] = {"fp32": 0, "int8": 1, "fp16": 2}


class NvInferProperty(BaseModel):
    """The group ``[property]``. A description becomes a comment above its key."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    gie_unique_id: Annotated[int, Field(alias="gie-unique-id", gt=0)] = 1
    gpu_id: Annotated[int, Field(alias="gpu-id", ge=0)] = 0
    process_mode: Annotated[
        Literal[1], Field(alias="process-mode", description="1: whole frames")
    ] = 1
    network_type: Annotated[
        Literal[1], Field(alias="network-type", description="1: a classifier")
    ] = 1
    network_mode: Annotated[
        Literal[0, 1, 2],
        Field(
            alias="network-mode",
            description="0 FP32, 1 INT8, 2 FP16; the plan's own types decide, whatever stands here",
        ),
    ]
    model_engine_file: Annotated[
        str,
        Field(
            alias="model-engine-file",
            description=(
                "There is no onnx-file: where the plan does not load, nvinfer would build another "
                "from it, and\n# not strongly typed. Where nvinfer knows the second key "
                "(9.2 does), this is right:\n"
                "#   onnx-file=model_deepstream.onnx\n#   strongly-typed=1"
            ),
        ),
    ]
    custom_lib_path: Annotated[
        str | None,
        Field(alias="custom-lib-path", description="Registers the plugins when it is loaded"),
    ] = None
    labelfile_path: Annotated[str, Field(alias="labelfile-path")]
    batch_size: Annotated[int, Field(alias="batch-size", gt=0)]
    network_input_order: Annotated[
        Literal[0], Field(alias="network-input-order", description="0: NCHW")
    ] = 0
    model_color_format: Annotated[
        Literal[0], Field(alias="model-color-format", description="0: RGB")
    ] = 0
    net_scale_factor: Annotated[
        float,
        Field(
            alias="net-scale-factor",
            gt=0,
            description=(
                "y = net-scale-factor * (x - offset). One factor for all channels: the division by "
                "each channel's\n# deviation is the first node of the graph"
            ),
        ),
    ]
    offsets: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(;\d+(\.\d+)?){2}$")]
    maintain_aspect_ratio: Annotated[
        Literal[0],
        Field(
            alias="maintain-aspect-ratio",
            description="0: no bars; cut the frame before (README.md)",
        ),
    ] = 0
    scaling_filter: Annotated[
        int,
        Field(
            alias="scaling-filter",
            ge=0,
            le=6,
            description="3: averages (GPU), 10 taps (VIC); the default takes the nearest pixel",
        ),
    ] = 3
    output_blob_names: Annotated[str, Field(alias="output-blob-names")]
    classifier_threshold: Annotated[float, Field(alias="classifier-threshold", ge=0, le=1)] = 0.0
