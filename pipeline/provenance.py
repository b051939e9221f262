# SPDX-License-Identifier: Apache-2.0
"""What results are made of: versions of packages, digests of recipes and of data."""

from __future__ import annotations

import json
from pathlib import Path

from stormrt.pipeline.files import sha256_file, sha256_text
from stormrt.pipeline.probe import installed_version
from stormrt.pipeline.schema import ToolVersion
from stormrt.targets import RuntimeName, Target, dump_target

TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "polygraphy", "numpy", "pillow")
"""Packages that have a part in results."""


def fingerprint(data: Path) -> str:
    """SHA-256 of a file, or of the names and sizes of all files below a folder."""
    if data.is_file():
        return sha256_file(data)
    files = sorted(path for path in data.rglob("*") if path.is_file())
    facts = [(path.relative_to(data).as_posix(), path.stat().st_size) for path in files]
    return sha256_text(repr(facts))


def tools() -> tuple[ToolVersion, ...]:
    """Packages that have a part in the result, with their versions."""
    found = ((name, installed_version(name)) for name in TOOLS)
    return tuple(ToolVersion(name=n, version=v) for n, v in found if v is not None)


def target_digest(target: Target) -> str:
    """SHA-256 of a resolved recipe."""
    return sha256_text(json.dumps(dump_target(target), sort_keys=True))


def distribution(runtime: RuntimeName) -> str:
    """The distribution that has a runtime's package."""
    return "tensorrt-rtx-cu13" if runtime == "tensorrt_rtx" else "tensorrt"
