# SPDX-License-Identifier: Apache-2.0
"""Where the weights that come with the package lie."""

from __future__ import annotations

from pathlib import Path

_PREFIX = "bundled:"
_FOLDER = Path(__file__).resolve().parent


def bundled(name: str) -> str | None:
    """The reference of the weights that come with the package for a variant, if any do.

    Args:
        name: A key of ``stormrt.storm.VARIANTS``.

    Returns:
        ``bundled:NAME``, which stands for the file in manifests and reports: the file's own path
        differs between machines. ``weights_path`` gives that.
    """
    reference = f"{_PREFIX}{name}"
    return reference if weights_path(reference).is_file() else None


def weights_path(checkpoint: str) -> Path:
    """The file that a spec's ``checkpoint`` means: a path, or a reference from ``bundled``."""
    if checkpoint.startswith(_PREFIX):
        return _FOLDER / f"{checkpoint.removeprefix(_PREFIX)}.safetensors"
    return Path(checkpoint)
