# SPDX-License-Identifier: Apache-2.0
"""VMamba and its training-free token reduction, STORM.

``VARIANTS``, ``StormPlan`` and ``parse_plan`` need no PyTorch; ``build_vmamba`` and
``load_checkpoint`` load it when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if not __name__.startswith("stormrt."):
    raise ImportError(
        "import stormrt.storm, not storm: under two names every registry would "
        "exist twice (docs/adr/0001)"
    )

from stormrt.storm.plan import Reduction, StormPlan, keep_plan, parse_plan
from stormrt.storm.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from stormrt.storm.checkpoint import load_checkpoint
    from stormrt.storm.vmamba import VMamba, build_vmamba

__all__ = [
    "VARIANTS",
    "Reduction",
    "StormPlan",
    "VMamba",
    "Variant",
    "build_vmamba",
    "keep_plan",
    "load_checkpoint",
    "parse_plan",
]


def __getattr__(name: str) -> object:
    if name in ("VMamba", "build_vmamba"):
        from stormrt.storm import vmamba

        return getattr(vmamba, name)
    if name == "load_checkpoint":
        from stormrt.storm.checkpoint import load_checkpoint

        return load_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
