# SPDX-License-Identifier: Apache-2.0
"""Facts are gathered from this machine and from file systems and packages that are made up."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from stormrt.pipeline.doctor import facts, power
from stormrt.pipeline.doctor.facts import Installation, Loading, Memory
from stormrt.pipeline.doctor.versions import agree, numbers

MEMINFO = "MemTotal: 7802880 kB\nMemFree: 100 kB\nMemAvailable: 2560000 kB\n"
SWAPS = "Filename Type Size Used Priority\n"
CONF = """\
< PARAM TYPE=CLOCK NAME=GPU >
< POWER_MODEL ID=0 NAME=15W >
GPU MAX_FREQ 624750000
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""


def system(root: Path, meminfo: str = MEMINFO, swaps: str = SWAPS) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(meminfo)
    (root / "proc/swaps").write_text(swaps)
    return root


def package(folder: Path, name: str, code: str, version: str | None = None) -> None:
    """A Python package, as pip installs it."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    if version:
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, for this process and those that it starts."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    return folder


def test_this_machine_is_described_without_failing_and_without_importing_a_runtime() -> None:
    code = (
        "import sys; from stormrt.pipeline.doctor import facts, examine\n"
        "seen = facts.gather(); print(len(examine.examine(seen)), seen.memory is not None)\n"
        "print(sorted({'torch', 'onnx', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    first, second = done.stdout.splitlines()
    assert int(first.split()[0]) >= 10
    assert first.endswith("True")
    assert second == "[]"


def test_swap_in_compressed_memory_is_no_memory(tmp_path: Path) -> None:
    swaps = SWAPS + (
        "/dev/zram0 partition 650000 0 5\n/dev/zram1 partition 650000 0 5\n"
        "/swapfile file 8388604 1048576 -2\n"
    )
    assert facts.memory(system(tmp_path, swaps=swaps)) == Memory(2500, 7167)


def test_a_system_that_does_not_tell_its_memory_is_unknown(tmp_path: Path) -> None:
    assert facts.memory(tmp_path) is None
    assert facts.memory(system(tmp_path, meminfo="MemTotal: 1 kB\n")) is None


def test_libraries_are_found_once_whatever_links_lead_to_them(tmp_path: Path) -> None:
    real = tmp_path / "libnvinfer.so.10.3.0"
    real.touch()
    (tmp_path / "libnvinfer.so.10").symlink_to(real)
    (tmp_path / "libnvinfer.so").symlink_to(real)
    other = tmp_path / "old"
    other.mkdir()
    (other / "libnvinfer.so.8.6.2").touch()
    (other / "libnvinfer_plugin.so.8.6.2").touch()
    found = [
        i for i in facts.installations([tmp_path, other, tmp_path / "nowhere"]) if "/" in i.where
    ]
    assert [i.version for i in found] == ["10.3.0", "8.6.2"]


def test_python_packages_of_tensorrt_are_found_and_those_of_rtx_are_not(packages: Path) -> None:
    package(packages, "tensorrt_cu12", "", "10.9.0.34")
    package(packages, "tensorrt_rtx_cu13", "", "1.7.1.116")
    (packages / "tensorrt_cu13-10.0.dist-info").mkdir()  # half removed
    found = facts.installations([])
    assert Installation("Python package tensorrt-cu12", "10.9.0.34") in found
    assert not [i for i in found if "rtx" in i.where]


def test_folders_of_the_loader_begin_with_those_that_the_user_names(monkeypatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/mine::/opt/other")
    assert facts.library_folders()[:2] == (Path("/opt/mine"), Path("/opt/other"))


@pytest.mark.parametrize(
    ("code", "loading"),
    [
        ("__version__ = '10.3.0'", Loading("10.3.0", None)),
        ("print('noise'); __version__ = '10.3.0'", Loading("10.3.0", None)),
        (
            "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
            Loading(None, "ImportError: libnvinfer.so.10: cannot open shared object file"),
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            Loading(None, "the process died of SIGSEGV while importing it"),
        ),
    ],
)
def test_a_runtime_is_imported_in_a_process_that_may_die(packages, code, loading) -> None:
    package(packages, "brokentrt", code)
    assert facts.load("brokentrt") == loading


def test_an_import_that_hangs_is_given_up(packages, monkeypatch) -> None:
    package(packages, "brokentrt", "import time; time.sleep(60)")
    monkeypatch.setattr(facts, "_IMPORT_SECONDS", 1)
    found = facts.load("brokentrt")
    assert found.version is None
    assert "timed out" in str(found.problem)


def test_a_plugin_library_is_described_by_its_header_and_its_manifest(tmp_path: Path) -> None:
    path = tmp_path / "libstormrt_plugins.so"
    path.write_bytes(b"\x7fELF" + bytes(14) + struct.pack("<H", 183) + bytes(40))
    found = facts.library_facts(path)
    assert (found.exists, found.arch, found.codes, found.headers) == (True, "aarch64", None, None)
    told = {"archs": ["sm_87", "compute_87"], "tensorrt_headers": "10.3.0"}
    (tmp_path / "libstormrt_plugins.json").write_text(json.dumps(told))
    found = facts.library_facts(path)
    assert (found.codes, found.headers) == (("sm_87", "compute_87"), "10.3.0")


@pytest.mark.parametrize("manifest", ["", "[]", "{", '{"archs": 1, "tensorrt_headers": "10"}'])
def test_a_damaged_manifest_of_a_library_is_as_good_as_none(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "libstormrt_plugins.json").write_text(manifest)
    found = facts.library_facts(tmp_path / "libstormrt_plugins.so")
    assert (found.exists, found.arch, found.codes) == (False, None, None)


def test_the_fastest_power_mode_is_read_from_the_boards_own_list(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text(CONF)
    modes = power.power_modes(tmp_path)
    assert modes == ((0, "15W"), (1, "25W"), (2, "MAXN_SUPER"))
    assert power.full_power_command(modes) == "sudo nvpmodel -m 2 && sudo jetson_clocks"
    assert power.is_full_power("MAXN_SUPER", modes)
    assert not power.is_full_power("25W", modes)


def test_a_board_without_maxn_is_fastest_with_the_most_watts() -> None:
    modes = ((0, "15W"), (1, "7W"))
    assert power.is_full_power("15W", modes)
    assert not power.is_full_power("7W", modes)
    assert power.full_power_command(modes).startswith("sudo nvpmodel -m 0")


def test_a_board_that_does_not_list_its_modes_is_told_how_to_list_them(tmp_path: Path) -> None:
    assert power.power_modes(tmp_path) == ()
    assert "nvpmodel -p --verbose" in power.full_power_command(())
    assert not power.is_full_power("15W", ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.3.0.30-1+cuda12.5", (10, 3, 0, 30)),
        ("36.4.3", (36, 4, 3)),
        ("unknown", ()),
        ("", ()),
        ("11", (11,)),
    ],
)
def test_a_versions_leading_numbers_are_read(text: str, expected: tuple[int, ...]) -> None:
    assert numbers(text) == expected


def test_versions_agree_as_far_as_both_are_told() -> None:
    assert agree((10, 3, 0), (10, 3, 0, 30))
    assert not agree((10, 3, 0), (10, 3, 1))
    assert agree((), (10,))
