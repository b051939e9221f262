# SPDX-License-Identifier: Apache-2.0
"""Reading and writing ONNX files, byte for byte reproducible."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from stormrt.errors import InputError
from stormrt.pipeline.artifacts import FileDigest, PluginUse
from stormrt.pipeline.files import atomic_path, sha256_file
from stormrt.plugins.registry import all_plugins
from stormrt.plugins.spec import DOMAIN


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read a model.

    Raises:
        InputError: The file is missing, cut off, not ONNX, or keeps weights in other files.
    """
    if not path.is_file():
        raise InputError("the ONNX file does not exist", where=str(path))
    try:
        # Whole files alone: data that lie outside could be anybody's, and no stage makes such.
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise InputError(
            "the file is not an ONNX model, or is damaged",
            where=str(path),
            got=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
        ) from error
    if not model.graph.node:
        raise InputError("the ONNX model has no nodes", where=str(path))
    outside = [t.name for t in model.graph.initializer if uses_external_data(t)]
    if outside:
        raise InputError(
            "the ONNX model keeps its weights in other files",
            where=str(path),
            got=", ".join(outside[:3]),
            expected="one file with everything in it, as `stormrt export` writes",
        )
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
    """Custom operators in a graph, with their counts.

    Raises:
        InputError: One is not ours.
    """
    counts = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
    known = all_plugins()
    unknown = sorted(set(counts) - set(known))
    if unknown:
        raise InputError(
            "the graph has custom operators that this version does not know",
            got=", ".join(unknown),
            expected=f"among {', '.join(known)}",
            fix="export the model again",
        )
    return tuple(PluginUse(name, known[name].version, counts[name]) for name in sorted(counts))
