# SPDX-License-Identifier: Apache-2.0
"""Power mode, clocks and temperature: without them a latency means nothing.

Nothing here fails: what a machine does not tell is ``unknown``. Jetsons tell through nvpmodel,
sysfs (devfreq, cpufreq, thermal zones) and tegrastats; cards through nvidia-smi.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Literal

from stormrt.pipeline import probe
from stormrt.pipeline.device.report import Conditions, Number

_TEGRASTATS_S = 1.5
_SMI_FIELDS = (
    "clocks.current.sm",
    "clocks.max.sm",
    "clocks.current.memory",
    "temperature.gpu",
    "power.draw",
    "power.limit",
)


def read_conditions(root: Path = Path("/")) -> Conditions:
    """What this machine tells now.

    Args:
        root: Where its file system begins.
    """
    board = probe.jetson(root)
    return _of_card(root) if board is None else _of_jetson(root, board.power_mode)


def _of_jetson(root: Path, power_mode: str) -> Conditions:
    told = tegrastats()
    gpu = _gpu_folder(root)
    now, most, least = (
        _scaled(gpu / name if gpu else None, 1e6) for name in ("cur_freq", "max_freq", "min_freq")
    )
    zone = _thermal_zone(root)
    locked: bool | Literal["unknown"] = "unknown"
    if most != "unknown" and least != "unknown":
        locked = most == least
    return Conditions(
        power_mode=power_mode,
        gpu_clock_mhz=_found(now, told, r"GR3D_FREQ \d+%@\[?(\d+)"),
        gpu_clock_most_mhz=most,
        gpu_clock_locked=locked,
        memory_clock_mhz=_found("unknown", told, r"EMC_FREQ \d+%@(\d+)"),
        cpu_clock_mhz=_cpu_clock(root),
        temperature_c=_found(_scaled(zone, 1e3), told, r"(?i)\bgpu@([\d.]+)C"),
        power_w=_milli(_found("unknown", told, r"\bVDD_IN (\d+)mW")),
    )


def _of_card(root: Path) -> Conditions:
    answer = _output(
        "nvidia-smi",
        f"--query-gpu={','.join(_SMI_FIELDS)}",
        "--format=csv,noheader,nounits",
        "-i=0",
    )
    cells = [_number(cell) for cell in answer.splitlines()[0].split(",")] if answer else []
    if len(cells) != len(_SMI_FIELDS):
        cells = ["unknown"] * len(_SMI_FIELDS)
    now, most, memory, temperature, power, limit = cells
    return Conditions(
        power_mode="unknown" if limit == "unknown" else f"limit {limit:g} W",
        gpu_clock_mhz=now,
        gpu_clock_most_mhz=most,
        gpu_clock_locked="unknown",
        memory_clock_mhz=memory,
        cpu_clock_mhz=_cpu_clock(root),
        temperature_c=temperature,
        power_w=power,
    )


def tegrastats() -> str:
    """One line of tegrastats, which prints for ever; empty where there is none."""
    try:
        subprocess.run(
            ["tegrastats", "--interval", "300"],
            capture_output=True,
            timeout=_TEGRASTATS_S,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        lines = (expired.stdout or b"").decode(errors="replace").splitlines()
        return lines[0] if lines else ""
    except OSError:
        return ""
    return ""


def _gpu_folder(root: Path) -> Path | None:
    # 17000000.gpu on JetPack 6, 17000000.ga10b on 5.
    found = sorted((root / "sys/class/devfreq").glob("*.g[pa][u1]*"))
    return found[0] if found else None


def _thermal_zone(root: Path) -> Path | None:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        if _read(zone / "type").lower().startswith("gpu"):
            return zone / "temp"
    return None


def _cpu_clock(root: Path) -> Number:
    return _scaled(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1e3)


def _scaled(path: Path | None, unit: float) -> Number:
    value = _number(_read(path)) if path else "unknown"
    return "unknown" if value == "unknown" else round(value / unit, 1)


def _found(known: Number, text: str, pattern: str) -> Number:
    """What is known already, else what a text says."""
    if known != "unknown":
        return known
    match = re.search(pattern, text)
    return _number(match[1]) if match else "unknown"


def _milli(value: Number) -> Number:
    return "unknown" if value == "unknown" else value / 1000


def _number(text: str) -> Number:
    try:
        return float(text.strip())
    except ValueError:
        return "unknown"


def _read(path: Path) -> str:
    # A thermal zone that is switched off answers with an error.
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
