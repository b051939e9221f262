# SPDX-License-Identifier: Apache-2.0
"""Power mode, clocks, temperature: read where a machine tells them, ``unknown`` elsewhere.

What can go wrong: a unit is wrong by a thousand; a missing tool or file ends the build; a tool that
never ends is waited for.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from stormrt.pipeline.device import conditions
from stormrt.pipeline.device.conditions import read_conditions
from stormrt.pipeline.device.memory import host_free_mib

TEGRASTATS = (
    "11-23-2026 10:00:00 RAM 2448/7620MB (lfb 4x4MB) SWAP 0/3810MB CPU [3%@729,0%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] cpu@48.6C soc2@46C gpu@47.5C tj@49C "
    "VDD_IN 4312mW/4312mW VDD_CPU_GPU_CV 600mW/600mW"
)


def tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def bin_(tmp_path, monkeypatch):
    """A PATH with the tools that a test writes, and a shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    return folder


@pytest.fixture
def orin(tmp_path, bin_):
    """The file system of an Orin with JetPack 6, as far as it is read."""
    root = tmp_path / "root"
    write(root, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1")
    gpu = "sys/class/devfreq/17000000.gpu"
    for name, hertz in (("cur_freq", 306e6), ("max_freq", 1020e6), ("min_freq", 306e6)):
        write(root, f"{gpu}/{name}", f"{hertz:.0f}")
    write(root, "sys/class/devfreq/15340000.vic/cur_freq", "1")
    cpu = "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    write(root, cpu, "1510400")
    write(root, "sys/class/thermal/thermal_zone0/type", "cpu-thermal")
    write(root, "sys/class/thermal/thermal_zone0/temp", "50000")
    write(root, "sys/class/thermal/thermal_zone1/type", "gpu-thermal")
    write(root, "sys/class/thermal/thermal_zone1/temp", "47218")
    tool(bin_, "nvpmodel", "echo 'NV Power Mode: MAXN_SUPER'; echo 2")
    tool(bin_, "tegrastats", f"echo '{TEGRASTATS}'; exec sleep 60")
    return root


def test_an_orin_tells_all(orin):
    found = read_conditions(orin)
    assert found.power_mode == "MAXN_SUPER"
    assert (found.gpu_clock_mhz, found.gpu_clock_most_mhz) == (306.0, 1020.0)
    assert found.gpu_clock_locked is False
    assert (found.memory_clock_mhz, found.cpu_clock_mhz) == (2133.0, 1510.4)
    assert (found.temperature_c, found.power_w) == (47.2, 4.312)


def test_after_jetson_clocks_the_clock_is_locked(orin):
    write(orin, "sys/class/devfreq/17000000.gpu/min_freq", "1020000000")
    assert read_conditions(orin).gpu_clock_locked is True


def test_what_sysfs_does_not_tell_is_taken_from_tegrastats(orin):
    for name in ("cur_freq", "max_freq", "min_freq"):
        (orin / "sys/class/devfreq/17000000.gpu" / name).unlink()
    (orin / "sys/class/thermal/thermal_zone1/temp").unlink()
    found = read_conditions(orin)
    assert (found.gpu_clock_mhz, found.temperature_c) == (305.0, 47.5)
    assert found.gpu_clock_most_mhz == found.gpu_clock_locked == "unknown"


def test_tegrastats_which_never_ends_is_not_waited_for(orin):
    started = time.monotonic()
    assert conditions.tegrastats() == TEGRASTATS
    assert time.monotonic() - started < 5


def test_a_board_that_tells_nothing_is_unknown_throughout(tmp_path, bin_):
    root = tmp_path / "bare"
    write(root, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3")
    for name in ("nvpmodel", "tegrastats"):
        tool(bin_, name, "exit 1")
    found = read_conditions(root)
    values = [getattr(found, name) for name in found.__slots__]
    assert values == ["unknown"] * 8


def test_a_card_tells_through_nvidia_smi(tmp_path, bin_):
    tool(bin_, "nvidia-smi", "echo '585, 1590, 5000, 41, 27.31, 70.00'")
    found = read_conditions(tmp_path)
    assert found.power_mode == "limit 70 W"
    assert (found.gpu_clock_mhz, found.gpu_clock_most_mhz) == (585, 1590)
    assert (found.memory_clock_mhz, found.temperature_c, found.power_w) == (5000, 41, 27.31)


@pytest.mark.parametrize(
    "script", ["exit 9", "echo 'no devices'", "echo '[N/A], [N/A], [N/A], [N/A], [N/A], [N/A]'"]
)
def test_a_card_that_does_not_tell_is_unknown(tmp_path, bin_, script):
    tool(bin_, "nvidia-smi", script)
    found = read_conditions(tmp_path)
    assert found.power_mode == found.gpu_clock_mhz == found.temperature_c == "unknown"


def test_free_memory_of_the_host_is_what_the_kernel_calls_available(tmp_path):
    write(tmp_path, "proc/meminfo", "MemFree: 1 kB\nMemAvailable:    2097152 kB")
    assert host_free_mib(tmp_path) == 2048
    assert host_free_mib(tmp_path / "nowhere") == "unknown"
