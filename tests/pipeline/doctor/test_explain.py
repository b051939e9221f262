# SPDX-License-Identifier: Apache-2.0
"""Pasted messages, as they stand in the issues, find the complaint that they are about."""

from __future__ import annotations

import string
import time

import pytest

from stormrt.pipeline.doctor.complaint import GAP
from stormrt.pipeline.doctor.complaints import COMPLAINTS
from stormrt.pipeline.doctor.explain import as_text, explain
from tests.helpers.seeds import generator

PASTED = [
    (
        "plugin-not-found",
        (
            "[E] [TRT] ModelImporter.cpp:726: ERROR: builtin_op_importers.cpp:4643 In function "
            'importFallbackPluginImporter:\n[8] Assertion failed: creator && "Plugin not found, '
            'are the plugin name, version, and namespace correct?"'
        ),
    ),
    (
        "plugin-not-found",
        (
            "ERROR: [TRT]: 1: [pluginV2Runner.cpp::load::290] Error Code 1: Serialization "
            "(Serialization assertion creator failed.Cannot deserialize plugin since corresponding "
            "IPluginCreator not found in Plugin Registry)"
        ),
    ),
    (
        "another-tensorrt",
        (
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
            "stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: "
            "Current Version: 237, Serialized Engine Version: 239)"
        ),
    ),
    (
        "another-tensorrt",
        (
            "[TRT] [E] 6: The engine plan file is not compatible with this version of TensorRT, "
            "expecting library version 8.6.1.6 got 8.6.0.12, please rebuild."
        ),
    ),
    (
        "another-gpu",
        (
            "INVALID_CONFIG: The engine plan file is generated on an incompatible device, "
            "expecting compute 6.1 got compute 7.5, please rebuild."
        ),
    ),
    (
        "not-a-plan",
        (
            "Error Code 1: Serialization (Serialization assertion magicTagRead == kMAGIC_TAG "
            "failed.Magic tag does not match)"
        ),
    ),
    (
        "gpu-not-supported",
        "Target GPU SM 87 is not supported by this TensorRT release.\n(in checkCurrentSMEnabled)",
    ),
    (
        "fp16-wrong",
        (
            "Running layernorm after self-attention with FP16 Reduce or Pow may cause overflow. "
            "Forcing Reduce or Pow Layers in FP32 precision"
        ),
    ),
    (
        "out-of-memory",
        (
            "[W] [TRT] Skipping tactic 8 due to insuficient memory on requested size of 4364 "
            "detected for tactic 60."
        ),
    ),
    ("out-of-memory", "Building an engine.  This would take a while...\nKilled"),
    (
        "silent-fp32",
        (
            "AttributeError: type object 'tensorrt_bindings.tensorrt.BuilderFlag' has no attribute "
            "'FP16'"
        ),
    ),
    (
        "silent-fp32",
        "TensorRT: export failure 5.5s: module 'tensorrt' has no attribute 'IInt8Calibrator'",
    ),
    (
        "tensorrt-does-not-load",
        "ImportError: libnvinfer.so.8: cannot open shared object file: No such file or directory",
    ),
    (
        "tensorrt-does-not-load",
        "ImportError: libnvdla_compiler.so: cannot open shared object file: No such file",
    ),
    (
        "plugin-library-misfit",
        (
            "IPluginRegistry::loadLibrary: Error Code 3: API Usage Error (SymbolAddress for "
            "getCreators could not be loaded, check function name against library symbol)"
        ),
    ),
    (
        "plugin-library-misfit",
        "permuteData.cu, 38, no kernel image is available for execution on the device",
    ),
    ("tensorrt-too-old", "error: 'IPluginCreatorInterface' does not name a type"),
    ("onnx-too-new", "[8] No importer registered for op: RMSNormalization"),
    (
        "driver-too-old",
        "[W] [TRT] CUDA initialization failure with error: 35. Please check your CUDA installation",
    ),
    (
        "slow-board",
        "[W] * GPU compute time is unstable, with coefficient of variance = 20.2126%.",
    ),
    ("disk-full", "OSError: [Errno 28] No space left on device"),
]


@pytest.mark.parametrize(("name", "text"), PASTED)
def test_a_pasted_message_finds_its_complaint_first(name: str, text: str) -> None:
    assert explain(text)[0].complaint.id == name


@pytest.mark.parametrize(("name", "text"), PASTED)
def test_case_colours_and_line_breaks_do_not_matter(name: str, text: str) -> None:
    ragged = "\x1b[31m" + text.upper().replace(" ", "\n   ") + "\x1b[0m"
    assert explain(ragged)[0].complaint.id == name


@pytest.mark.parametrize("complaint", COMPLAINTS, ids=lambda c: c.id)
def test_every_symptom_finds_its_complaint_with_words_in_its_gaps(complaint) -> None:
    for symptom in complaint.symptoms:
        text = f"before: {symptom.replace(GAP, ' some 8.7 words ')} after"
        found = [match for match in explain(text) if match.complaint == complaint]
        assert symptom in found[0].symptoms, symptom


def test_one_message_may_have_two_causes() -> None:
    names = [m.complaint.id for m in explain("Version tag does not match")]
    assert names == ["another-tensorrt", "several-tensorrts"]


@pytest.mark.parametrize("text", ["", "hello", "the build is done in 12 s", "skilled nanometre"])
def test_what_is_no_known_message_finds_nothing(text: str) -> None:
    assert explain(text) == ()


def test_a_long_log_is_read_to_its_end_and_quickly() -> None:
    rng = generator("a long log")
    # Lines that begin as symptoms do and do not go on: the worst for a search with gaps.
    pieces = ["Skipping tactic", "expecting compute", "SM", "int8", "libnvinfer.so", "Killer"]
    letters = list(string.ascii_letters)
    noise = "\n".join(
        f"{rng.choice(pieces)} {''.join(rng.choice(letters, 40))}" for _ in range(10_000)
    )
    start = time.perf_counter()
    found = explain(f"{noise}\nMagic tag does not match")
    assert [m.complaint.id for m in found] == ["not-a-plan"]
    assert time.perf_counter() - start < 5


def test_links_of_the_document_are_written_out_for_a_terminal() -> None:
    step = "See [two](#several-tensorrts) and [INT8](int8.md)."
    assert as_text(step) == (
        "See two (docs/troubleshooting.md#several-tensorrts) and INT8 (docs/int8.md)."
    )
