# SPDX-License-Identifier: Apache-2.0
"""VMamba and its training-free token reduction, STORM.

Plans, variants and hosts need no PyTorch; ``build_vmamba``, ``load_checkpoint`` and
``calibrate_selection`` load it when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if not __name__.startswith("stormrt."):
    raise ImportError(
        "import stormrt.storm, not storm: under two names every registry would "
        "exist twice (docs/adr/0001)"
    )

from stormrt.storm.hosts import host_names, register_host
from stormrt.storm.plan import Reduction, StormPlan, keep_plan, parse_plan
from stormrt.storm.variants import VARIANTS, Variant

if TYPE_CHECKING:
    from stormrt.storm.calibrate import calibrate_selection
    from stormrt.storm.checkpoint import load_checkpoint
    from stormrt.storm.vmamba import VMamba, build_vmamba

__all__ = [
    "VARIANTS",
    "Reduction",
    "StormPlan",
    "VMamba",
    "Variant",
    "build_vmamba",
    "calibrate_selection",
    "host_names",
    "keep_plan",
    "load_checkpoint",
    "parse_plan",
    "register_host",
]


def __getattr__(name: str) -> object:
    if name in ("VMamba", "build_vmamba"):
        from stormrt.storm import vmamba

        return getattr(vmamba, name)
    if name == "load_checkpoint":
        from stormrt.storm.checkpoint import load_checkpoint

        return load_checkpoint
    if name == "calibrate_selection":
        from stormrt.storm.calibrate import calibrate_selection

        return calibrate_selection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
