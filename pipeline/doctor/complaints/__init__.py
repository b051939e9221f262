# SPDX-License-Identifier: Apache-2.0
"""All complaints. The order is the document's: how often they are heard, by our reading."""

from __future__ import annotations

from stormrt.pipeline.doctor.complaint import Complaint
from stormrt.pipeline.doctor.complaints import (
    another_gpu,
    another_tensorrt,
    disk_full,
    driver_too_old,
    fp16_wrong,
    gpu_not_supported,
    int8_accuracy,
    int8_slower,
    not_a_plan,
    onnx_too_new,
    out_of_memory,
    plugin_library_misfit,
    plugin_not_found,
    several_tensorrts,
    silent_fp32,
    slow_board,
    tensorrt_does_not_load,
    tensorrt_too_old,
)

COMPLAINTS: tuple[Complaint, ...] = tuple(
    module.COMPLAINT
    for module in (
        plugin_not_found,
        another_tensorrt,
        another_gpu,
        fp16_wrong,
        int8_accuracy,
        int8_slower,
        out_of_memory,
        silent_fp32,
        tensorrt_does_not_load,
        not_a_plan,
        several_tensorrts,
        plugin_library_misfit,
        gpu_not_supported,
        tensorrt_too_old,
        onnx_too_new,
        driver_too_old,
        slow_board,
        disk_full,
    )
)
