# SPDX-License-Identifier: Apache-2.0
"""What Isaac ROS's nodes and launch files take: parameters by name and type.

Sources, all of NVIDIA-ISAAC-ROS on GitHub:

- ``isaac_ros_dnn_inference``, ``isaac_ros_tensor_rt/src/tensor_rt_node.cpp``: the calls of
  ``declare_parameter``, at commits 089480e (release 3.2), 9bcd75c (``custom_plugin_lib``, which
  releases before 4.2 lack and ignore) and the file of release 5 (``rclcpp::Node``);
- ``isaac_ros_dnn_inference``, ``isaac_ros_dnn_image_encoder/launch/dnn_image_encoder.launch.py`` at
  089480e and ``dnn_image_encoder_nodes.launch.py`` at 55f180b: ``DeclareLaunchArgument`` and
  ``LaunchConfiguration``;
- ``isaac_ros_image_pipeline``, ``isaac_ros_image_proc/src/crop_node.cpp`` at 177ef85; of
  ``ResizeNode`` what the encoder's launch file gives it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
Channels = Annotated[tuple[float, float, float], Field(strict=False)]
Positive = Annotated[int, Field(gt=0)]
CropMode = Literal[
    "CENTER",
    "LEFT",
    "RIGHT",
    "TOP",
    "BOTTOM",
    "TOPLEFT",
    "TOPRIGHT",
    "BOTTOMLEFT",
    "BOTTOMRIGHT",
    "BBOX",
]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TensorRtNode(_Parameters):
    """Parameters of ``nvidia::isaac_ros::dnn_inference::TensorRTNode``."""

    model_file_path: str
    """The ONNX file; read only where the engine is missing or is to be renewed."""
    engine_file_path: str
    custom_plugin_lib: str | None = None
    """A library that the node opens with dlopen before it loads the engine."""
    input_tensor_names: Names
    """Of the tensors in the messages."""
    input_binding_names: Names
    """Of the engine's inputs, in the same order."""
    output_tensor_names: Names
    output_binding_names: Names
    force_engine_update: Literal[False]
    """True, the node's default, deletes the engine and builds one without strong typing."""
    verbose: bool = False
    max_batch_size: Positive = 1
    """Read only where the node builds the engine."""


class ImageEncoder(_Parameters):
    """Launch arguments of ``isaac_ros_dnn_image_encoder``, as the package's file holds them."""

    network_image_width: Positive
    network_image_height: Positive
    image_mean: Channels
    """Of RGB in [0, 1]: the launch file has its pixels divided by 255 before."""
    image_stddev: Channels
    enable_padding: Literal[True] = True
    """True: the input, which is of the network's size already, stays whole."""
    keep_aspect_ratio: Literal[False] = False
    """No bars."""
    crop_mode: CropMode = "CENTER"
    encoding_desired: Literal["rgb8"] = "rgb8"
    final_tensor_name: str


class ImageEncoderArguments(_Parameters):
    """All arguments that the encoder's launch file knows, as texts, as ROS passes them."""

    input_image_width: str
    input_image_height: str
    network_image_width: str
    network_image_height: str
    image_mean: str
    image_stddev: str
    enable_padding: str
    keep_aspect_ratio: str
    crop_mode: str
    encoding_desired: str
    input_encoding: str
    final_tensor_name: str
    image_input_topic: str
    camera_info_input_topic: str
    tensor_output_topic: str
    attach_to_shared_component_container: str
    component_container_name: str
    dnn_image_encoder_namespace: str
    input_qos: str = "DEFAULT"
    output_qos: str = "DEFAULT"
    num_blocks: str = "40"


class ResizeNode(_Parameters):
    """Parameters of ``nvidia::isaac_ros::image_proc::ResizeNode``."""

    output_width: Positive
    output_height: Positive
    keep_aspect_ratio: bool
    encoding_desired: str
    num_blocks: Positive = 40
    input_qos: str = "DEFAULT"


class CropNode(_Parameters):
    """Parameters of ``nvidia::isaac_ros::image_proc::CropNode``."""

    input_width: Positive
    input_height: Positive
    crop_width: Positive
    crop_height: Positive
    crop_mode: CropMode
    num_blocks: Positive = 40
    input_qos: str = "DEFAULT"
    output_qos: str = "DEFAULT"


class ParameterFile(_Parameters):
    """``params.yaml``: what the launch file reads."""

    tensor_rt_node: TensorRtNode
    dnn_image_encoder: ImageEncoder
    resize_ratio: Annotated[float, Field(ge=1)]
    """The resized photograph's side over the crop's, as in training."""
