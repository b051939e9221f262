# SPDX-License-Identifier: Apache-2.0
"""Records of a bundle's files that the workstation and the device both write."""

from __future__ import annotations

from dataclasses import dataclass

from stormrt.runtime_name import RuntimeName


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file by its name and SHA-256."""

    name: str
    """Relative to the folder that the record lies in."""
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PluginUse:
    """How often a graph uses a custom operator."""

    name: str
    version: str
    count: int


@dataclass(frozen=True, slots=True)
class EngineArtifact:
    """A serialized engine."""

    file: FileDigest
    runtime: RuntimeName
    runtime_version: str
    sm: int
    """Compute capability, times ten: 75, 87."""
    plugin_libraries: tuple[FileDigest, ...] = ()
    """Those that it was built with, by their file names: others may have other kernels."""
