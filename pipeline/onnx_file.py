# SPDX-License-Identifier: Apache-2.0
"""Reading and writing ONNX files, byte for byte reproducible."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import FileDigest, PluginUse
from stormrt.pipeline.files import atomic_path, sha256_file
from stormrt.plugins.registry import all_plugins
from stormrt.plugins.spec import DOMAIN


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read a model.

    Raises:
        InputError: The file is missing, cut off, or not ONNX.
    """
    if not path.is_file():
        raise InputError("the ONNX file does not exist", where=str(path))
    try:
        model = onnx.load(path)
    except (DecodeError, ValueError) as error:
        raise InputError(
            "the file is not an ONNX model, or is damaged",
            where=str(path),
            got=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
        ) from error
    if not model.graph.node:
        raise InputError("the ONNX model has no nodes", where=str(path))
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> FileDigest:
    """Write a model atomically, the same bytes for the same graph.

    Raises:
        InputError: The folder cannot be written.
    """
    model.producer_name, model.producer_version = "stormrt", ""
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    return digest_of(path)


def digest_of(path: Path) -> FileDigest:
    """Digest of a file that exists."""
    return FileDigest(path.name, sha256_file(path), path.stat().st_size)


def plugin_uses(model: onnx.ModelProto) -> tuple[PluginUse, ...]:
    """Custom operators in a graph, with their counts."""
    counts = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
    return tuple(
        PluginUse(name, all_plugins()[name].version, counts[name]) for name in sorted(counts)
    )
