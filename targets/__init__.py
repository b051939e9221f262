# SPDX-License-Identifier: Apache-2.0
"""The boards that engines are built for: one TOML recipe each, checked against one typed schema.

A recipe states what a board is (GPU, memory), what runs on it (TensorRT, JetPack), how its engine
is built (precisions, workspace) and how far the engine's outputs may be from PyTorch's. Recipes
are data: they can be listed, compared and hashed, and nothing in them is executed.

Example:
    >>> from stormrt.targets import load_target
    >>> load_target("t4").device.sm
    75
"""

if not __name__.startswith("stormrt."):
    # The folder lies at the top of the repository, so that it can be imported by two names there.
    # Two names would be two copies of every class, and `isinstance` would fail between them.
    raise ImportError(f"import stormrt.targets, not {__name__}")

from stormrt.runtime_name import RuntimeName
from stormrt.targets.loading import dump_target, list_targets, load_target, parse_target
from stormrt.targets.schema import (
    Build,
    Device,
    JetPack,
    Lowering,
    Precision,
    Quantization,
    RuntimeRecipe,
    Software,
    Target,
    Tolerance,
    Tolerances,
)

__all__ = [
    "Build",
    "Device",
    "JetPack",
    "Lowering",
    "Precision",
    "Quantization",
    "RuntimeName",
    "RuntimeRecipe",
    "Software",
    "Target",
    "Tolerance",
    "Tolerances",
    "dump_target",
    "list_targets",
    "load_target",
    "parse_target",
]
