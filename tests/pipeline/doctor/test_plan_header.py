# SPDX-License-Identifier: Apache-2.0
"""What the first bytes of a file tell."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from stormrt.pipeline.doctor.plan_header import PlanHeader, read_plan_header
from tests.pipeline.doctor.boards import plan


def header(folder: Path, content: bytes) -> PlanHeader:
    path = folder / "some.plan"
    path.write_bytes(content)
    return read_plan_header(path)


def test_a_plan_tells_its_runtime_and_the_version_that_built_it(tmp_path) -> None:
    assert header(tmp_path, plan()) == PlanHeader("tensorrt", (10, 3, 0, 30))
    found = header(tmp_path, plan(b"vtrt", (1, 7, 1, 116)))
    assert found == PlanHeader("tensorrt_rtx", (1, 7, 1, 116))


def test_a_layout_that_is_not_known_tells_no_version(tmp_path) -> None:
    assert header(tmp_path, plan(layout=1)) == PlanHeader("tensorrt", None)
    assert header(tmp_path, b"ftrt\0\0\0\0") == PlanHeader("tensorrt", None)


def test_metadata_before_a_plan_is_seen_and_the_plan_behind_it_too(tmp_path) -> None:
    text = json.dumps({"names": {"0": "person"}, "imgsz": [640, 640]}).encode()
    found = header(tmp_path, struct.pack("<I", len(text)) + text + plan())
    assert found == PlanHeader("ultralytics", (10, 3, 0, 30))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "pointer"),
        (b"PK\x03\x04 a zip", "other"),
        (b"\xff\xff\xff\x7f{ a length past the end", "other"),
        (b"\x04\x00\x00\x00{}  no plan behind", "other"),
        (b"f", "other"),
    ],
)
def test_what_is_no_plan_is_told_apart(tmp_path, content: bytes, kind: str) -> None:
    assert header(tmp_path, content) == PlanHeader(kind, None)  # type: ignore[arg-type]  # a Kind
