# SPDX-License-Identifier: Apache-2.0
"""Names of a bundle's files and tensors, in one place."""

from __future__ import annotations

INPUT_NAME = "images"
"""The one input of every graph: [B, 3, H, W], FP32, normalised (``photographs.preprocess``)."""
OUTPUT_NAME = "logits"
"""The one output of every graph: [B, classes], FP32."""

MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
ENGINE_NAME = "engine.plan"
FP16_MODEL_NAME = "model.fp16.onnx"
FP16_ENGINE_NAME = "engine.fp16.plan"
GOLDEN_NAME = "golden.npz"
DEVICE_REPORT_NAME = "device_report.json"
"""What the device phase found (``device.report``)."""
SCRIPT_NAME = "build_engine.py"
"""The device phase in one file, for boards on which nothing may be installed."""
PLUGIN_SOURCES_NAME = "plugin_sources.zip"
"""What the script compiles the plugin library from."""

WORK_FOLDER = ".stormrt"
"""What is kept between builds: artefacts of stages, timing caches, the lock."""
PLUGIN_FOLDER = "plugins"
"""Folder of a bundle in which its plugin library is built, on the target."""
