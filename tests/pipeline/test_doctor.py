# SPDX-License-Identifier: Apache-2.0
"""Doctor and probe: facts about this machine, and about machines that are imitated here.

The CUDA driver is imitated by a small C library, so that the calls through ctypes are real ones.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from importlib import metadata
from pathlib import Path

import pytest

from stormrt.pipeline import probe
from stormrt.pipeline.doctor import Check, power, run_checks

GROUPS = ("core", "workstation", "rtx", "device", "gpu", "compiler")

FAKE_DRIVER = r"""
#include <string.h>
#include <stddef.h>
#ifndef COUNT
#define COUNT 1
#endif
#ifndef STATUS
#define STATUS 0
#endif
int cuInit(unsigned flags) { (void)flags; return STATUS; }
int cuDriverGetVersion(int* v) { *v = 12060; return 0; }
int cuDeviceGetCount(int* n) { *n = COUNT; return 0; }
int cuDeviceGet(int* d, int i) { *d = 100 + i; return 0; }
int cuDeviceGetName(char* s, int n, int d) {
    strncpy(s, d == 100 ? "Tesla T4" : "Orin", (size_t)n); return 0; }
int cuDeviceTotalMem_v2(size_t* b, int d) { (void)d; *b = (size_t)15360 << 20; return 0; }
int cuDeviceGetAttribute(int* v, int a, int d) {
    int t4 = d == 100;
    if (a == 16) *v = t4 ? 40 : 8;
    else if (a == 75) *v = t4 ? 7 : 8;
    else if (a == 76) *v = t4 ? 5 : 7;
    else return 1;
    return 0; }
"""

FakeDriver = Callable[..., None]


@pytest.fixture
def fake_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Return a function that puts an imitated driver in the place of this machine's."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the CUDA driver cannot be imitated")

    def install(**defines: int) -> None:
        source = tmp_path / "cuda.c"
        source.write_text(FAKE_DRIVER)
        # One name for each variant: dlopen gives a library that is loaded again unread.
        name = "_".join(["libcuda", *(f"{key}{value}" for key, value in defines.items())])
        library = tmp_path / f"{name}.so"
        flags = [f"-D{key}={value}" for key, value in defines.items()]
        command = [compiler, "-shared", "-fPIC", *flags, "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        monkeypatch.setattr(probe, "_LIBCUDA", str(library))

    return install


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the CUDA driver away."""
    monkeypatch.setattr(probe, "_LIBCUDA", "libcuda-that-is-nowhere.so.1")


def named(name: str, checks: tuple[Check, ...] | None = None) -> Check:
    return next(check for check in checks or run_checks() if check.name == name)


def lacking(monkeypatch: pytest.MonkeyPatch, *missing: str, **versions: str) -> None:
    """Imitate installed packages: some missing, some of a given version, the rest version 99."""

    def version(distribution: str) -> str | None:
        key = distribution.replace("-", "_")
        return None if distribution in missing else versions.get(key, "99.0")

    monkeypatch.setattr(probe, "installed_version", version)


def test_this_machine_is_described_without_failing() -> None:
    machine = probe.probe_machine()
    assert machine.system.startswith("Linux")
    assert machine.python == ".".join(map(str, sys.version_info[:3]))
    assert machine.cpu_count >= 1
    assert machine.memory_mib > 256
    assert dict(machine.packages)["pydantic"] == metadata.version("pydantic")
    assert (machine.cuda.reason is None) == bool(machine.cuda.gpus)


def test_the_probe_loads_nothing_heavy() -> None:
    script = (
        "import sys; from stormrt.pipeline import doctor; doctor.run_checks()\n"
        "heavy = {'torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'numpy', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


def test_the_doctor_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    run_checks()
    assert capfd.readouterr() == ("", "")


def test_every_group_is_checked_and_kept_together() -> None:
    groups = [check.group for check in run_checks()]
    assert tuple(dict.fromkeys(groups)) == GROUPS
    assert groups == sorted(groups, key=GROUPS.index)


def test_every_check_says_what_it_is_for_and_only_what_is_off_has_a_command() -> None:
    for check in run_checks():
        assert check.name
        assert check.found
        assert check.needed_for
        assert check.status in ("ok", "warning", "missing")
        if check.status == "ok":
            assert check.mend is None
        elif check.group != "gpu":
            assert check.mend


def test_a_check_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        run_checks()[0].status = "ok"  # type: ignore[misc]  # the point of the test


def test_a_missing_package_has_the_exact_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking(monkeypatch, "onnx-graphsurgeon", "torch")
    checks = run_checks()
    surgeon = named("onnx-graphsurgeon", checks)
    assert (surgeon.status, surgeon.found) == ("missing", "not installed")
    assert surgeon.mend == f"{sys.executable} -m pip install 'onnx-graphsurgeon>=0.6.1'"
    assert named("torch", checks).mend == f"{sys.executable} -m pip install torch"
    assert named("onnx", checks).status == "ok"


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("0.5.9", "warning"),
        ("0.6", "warning"),
        ("0.6.1", "ok"),
        ("0.10.0", "ok"),
        ("1.0+cpu", "ok"),
        (probe.UNKNOWN, "ok"),
    ],
)
def test_a_package_that_is_too_old_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, version: str, status: str
) -> None:
    lacking(monkeypatch, onnx_graphsurgeon=version)
    check = named("onnx-graphsurgeon")
    assert check.status == status
    assert version in check.found


def test_tensorrt_comes_from_jetpack_on_arm_and_from_pypi_on_x86(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lacking(monkeypatch, "tensorrt")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert named("tensorrt").mend == "sudo apt-get install -y python3-libnvinfer"
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert str(named("tensorrt").mend).endswith("pip install 'tensorrt>=10.3,<12'")


@pytest.mark.usefixtures("no_driver")
def test_a_machine_without_a_driver_says_so() -> None:
    driver = probe.cuda_driver()
    assert driver.gpus == ()
    assert driver.reason == (
        "no CUDA driver on this machine (libcuda-that-is-nowhere.so.1 not found)"
    )
    check = named("CUDA driver")
    assert (check.status, check.found) == ("missing", driver.reason)


def test_the_driver_is_asked_for_each_gpu(fake_driver: FakeDriver) -> None:
    fake_driver(COUNT=2)
    driver = probe.cuda_driver()
    assert driver.cuda_version == "12.6"
    assert driver.reason is None
    assert driver.gpus == (
        probe.Gpu(0, "Tesla T4", 75, 40, 15360),
        probe.Gpu(1, "Orin", 87, 8, 15360),
    )
    checks = run_checks()
    assert named("GPU 0", checks).found == "Tesla T4, SM 7.5, 15360 MiB"
    assert named("CUDA driver", checks).found.startswith("CUDA 12.6")


def test_a_driver_without_a_gpu_is_told_apart_from_no_driver(fake_driver: FakeDriver) -> None:
    fake_driver(COUNT=0)
    assert probe.cuda_driver().reason == "the CUDA driver sees no GPU"
    checks = run_checks()
    assert named("CUDA driver", checks).status == "ok"
    assert named("GPU", checks).status == "missing"


def test_a_driver_that_does_not_start_gives_its_error_number(fake_driver: FakeDriver) -> None:
    fake_driver(STATUS=999)
    assert probe.cuda_driver().reason == "the CUDA driver does not start (error 999)"


@pytest.mark.usefixtures("no_driver")
def test_an_engine_is_not_run_without_a_driver() -> None:
    reason = probe.engine_run_blocker("tensorrt_rtx", 75)
    assert reason is not None
    assert reason.startswith("no CUDA driver on this machine")


def test_an_engine_is_not_run_on_another_gpu(fake_driver: FakeDriver) -> None:
    fake_driver()
    assert (
        probe.engine_run_blocker("tensorrt", 87)
        == "the engine is for SM 8.7 and this GPU is SM 7.5"
    )


def test_an_engine_is_not_run_without_its_runtime(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_driver()
    monkeypatch.setattr(probe, "_is_importable", lambda _module: False)
    assert probe.engine_run_blocker("tensorrt", 75) == "tensorrt is not installed"


def test_an_engine_can_be_run_where_all_is_there(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_driver()
    monkeypatch.setattr(probe, "_is_importable", lambda module: module == "tensorrt")
    assert probe.engine_run_blocker("tensorrt", 75) is None


def test_a_package_without_metadata_is_of_unknown_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "systempackage.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert probe.installed_version("systempackage") == probe.UNKNOWN
    assert probe.installed_version("no-such-package") is None


def test_a_package_is_found_under_the_name_of_its_cuda_variant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if name == "tensorrt-cu12":
            return "10.9.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert probe.installed_version("tensorrt") == "10.9.0"


def board(root: Path, release: str) -> Path:
    (root / "etc").mkdir()
    (root / "etc/nv_tegra_release").write_text(release)
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    return root


RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"


def test_a_jetson_is_told_by_its_release_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"dpkg-query": "6.2+b77", "nvpmodel": "NV Power Mode: MAXN\n0"}
    monkeypatch.setattr(probe, "_output", lambda *command: answers.get(command[0]))
    found = probe.jetson(board(tmp_path, RELEASE))
    assert found == probe.Jetson("NVIDIA Jetson AGX Orin Developer Kit", "36.4.3", "6.2", "MAXN")


def test_what_a_jetson_does_not_tell_reads_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_output", lambda *_: None)
    found = probe.jetson(board(tmp_path, "a file of another form"))
    assert found is not None
    assert (found.l4t, found.jetpack, found.power_mode) == ("unknown",) * 3


def test_a_machine_without_the_release_file_is_no_jetson(tmp_path: Path) -> None:
    assert probe.jetson(tmp_path) is None


@pytest.mark.parametrize(
    ("mode", "status"),
    [("MAXN", "ok"), ("MAXN_SUPER", "ok"), ("15W", "warning"), ("unknown", "warning")],
)
def test_a_jetson_below_full_power_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, mode: str, status: str
) -> None:
    found = probe.Jetson("Jetson Orin Nano", "36.4.3", "6.2", mode)
    monkeypatch.setattr(probe, "jetson", lambda: found)
    checks = run_checks()
    assert named("Jetson Orin Nano", checks).found == "JetPack 6.2, L4T 36.4.3"
    power = named("power mode", checks)
    assert (power.status, power.found) == (status, mode)
    assert ("nvpmodel" in (power.mend or "")) == (status == "warning")


def test_the_command_for_full_power_has_the_boards_own_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = probe.Jetson("Jetson Orin Nano", "36.4.3", "6.2", "25W")
    monkeypatch.setattr(probe, "jetson", lambda: slow)
    monkeypatch.setattr(power, "power_modes", lambda: ((1, "25W"), (2, "MAXN_SUPER")))
    assert named("power mode").mend == "sudo nvpmodel -m 2 && sudo jetson_clocks"


def test_the_compilers_version_is_read_from_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "Cuda compilation tools, release 12.6, V12.6.68\nBuild cuda_12.6.r12.6/compiler"
    monkeypatch.setattr(probe, "nvcc_path", lambda: Path("/somewhere/nvcc"))
    monkeypatch.setattr(probe, "_output", lambda *_: answer)
    assert probe.nvcc_version() == "12.6.68"


def test_missing_compilers_are_answered_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "nvcc_path", lambda: None)
    monkeypatch.setattr(probe, "compiler_version", lambda _command: None)
    checks = run_checks()
    assert named("nvcc", checks).status == "missing"
    assert str(named("nvcc", checks).mend).startswith("sudo apt-get install")
    assert named("g++", checks).mend == "sudo apt-get install -y g++"


def test_a_command_that_fails_or_is_missing_answers_nothing() -> None:
    assert probe._output("no-such-command-anywhere") is None
    assert probe._output(sys.executable, "-c", "raise SystemExit(3)") is None
    assert probe._output(sys.executable, "-c", "print(' yes ')") == "yes"


def test_the_pipeline_cannot_be_imported_by_its_short_name() -> None:
    path = Path(probe.__file__).with_name("__init__.py")
    spec = importlib.util.spec_from_file_location("pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"import stormrt\.pipeline"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
