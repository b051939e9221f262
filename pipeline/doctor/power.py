# SPDX-License-Identifier: Apache-2.0
"""Power modes of a Jetson, and what to type for the fastest."""

from __future__ import annotations

import re
from pathlib import Path

PowerModes = tuple[tuple[int, str], ...]
"""Number and name of each."""


def power_modes(root: Path = Path("/")) -> PowerModes:
    """Return number and name of each power mode that a Jetson has; empty where it does not tell.

    Numbers differ between boards: full power is mode 0 of an AGX Orin and mode 2 of an Orin Nano
    with JetPack 6.2.
    """
    try:
        text = (root / "etc/nvpmodel.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found = re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text, re.MULTILINE)
    return tuple((int(number), name) for number, name in found)


def is_full_power(mode: str, modes: PowerModes) -> bool:
    """Whether a power mode is the board's fastest: MAXN, MAXN_SUPER, or the most watts."""
    if mode.startswith("MAXN"):
        return True
    best = _fastest(modes)
    return best is not None and best[1] == mode


def full_power_command(modes: PowerModes) -> str:
    """Return what to type for full power; without known modes, what lists them first."""
    best = _fastest(modes)
    if best is None:
        return "nvpmodel -p --verbose; sudo nvpmodel -m NUMBER_OF_MAXN && sudo jetson_clocks"
    return f"sudo nvpmodel -m {best[0]} && sudo jetson_clocks"


def _fastest(modes: PowerModes) -> tuple[int, str] | None:
    def rank(mode: tuple[int, str]) -> tuple[int, int]:
        # "15W", "MODE_30W", "MAXN_SUPER"; without MAXN the most watts are all that there is.
        watts = re.search(r"(\d+)W", mode[1])
        full = 2 if mode[1] == "MAXN_SUPER" else int(mode[1].startswith("MAXN"))
        return full, int(watts[1]) if watts else 0

    return max(modes, key=rank, default=None)
