# SPDX-License-Identifier: Apache-2.0
"""Checks of what a build needs: memory, disk, TensorRT, JetPack, driver, opset."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stormrt.pipeline.doctor.facts import Installation, Loading, Memory
from tests.pipeline.doctor.boards import (
    NANO,
    ORIN,
    T4,
    facts,
    finding,
    machine,
    orin,
    subject,
)
from tests.pipeline.doctor.folders import GRAPH, asked
from tests.runtime.folders import write_folder


def test_too_little_memory_for_a_build_is_a_problem_with_the_swap_that_mends_it() -> None:
    found = finding("out-of-memory", orin(memory=Memory(2500, 0)))
    assert found.status == "problem"
    assert "estimate" in found.found
    assert "mkswap" in str(found.mend)
    assert finding("out-of-memory", orin(memory=Memory(2500, 8192))).status == "ok"


def test_a_card_has_its_own_memory_and_the_recipes_workspace_must_fit(tmp_path) -> None:
    folder = write_folder(tmp_path / "bundle", built=False)
    small = facts(machine=machine(replace(T4, memory_mib=2048)), subject=asked(folder))
    found = finding("out-of-memory", small)
    assert found.status == "problem"
    assert "workspace is 4096 MiB" in found.found
    assert finding("out-of-memory", facts(subject=asked(folder))).status == "ok"
    assert finding("out-of-memory", facts(memory=Memory(1000, 0))).mend is None  # swap is no GPU's


def test_a_disk_that_is_nearly_full_is_a_problem() -> None:
    assert finding("disk-full", facts(free_disk_mib=300)).status == "problem"
    assert finding("disk-full", facts(free_disk_mib=30_000)).status == "ok"


def test_a_tensorrt_that_does_not_load_is_told_with_its_reason() -> None:
    broken = {"tensorrt": Loading(None, "ImportError: libnvinfer.so.10: cannot open shared object")}
    found = finding("tensorrt-does-not-load", orin(loading=broken))
    assert found.status == "problem"
    assert "libnvinfer.so.10" in found.found
    assert "nvidia-jetpack" in str(found.mend)
    # The others have nothing to compare with, and say so.
    assert finding("gpu-not-supported", orin(loading=broken)).status == "cannot tell"
    assert finding("tensorrt-too-old", orin(loading=broken)).status == "cannot tell"


def test_a_tensorrt_that_is_missing_is_a_problem_on_a_board_alone() -> None:
    assert finding("tensorrt-does-not-load", orin(loading={})).status == "problem"
    assert finding("tensorrt-does-not-load", facts(loading={})).status == "cannot tell"


def test_several_tensorrts_of_different_versions_are_a_problem() -> None:
    system = Installation("/usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0", "10.3.0")
    wheel = Installation("Python package tensorrt-cu12", "10.9.0.34")
    found = finding("several-tensorrts", orin(installations=(system, wheel)))
    assert found.status == "problem"
    assert "libnvinfer.so.10.3.0 10.3.0" in found.found
    assert "tensorrt-cu12 10.9.0.34" in found.found
    same = Installation("Python package tensorrt", "10.3.0.30")
    assert finding("several-tensorrts", orin(installations=(system, same))).status == "ok"
    # One file, and Python takes another: LD_LIBRARY_PATH, or a container.
    other = {"tensorrt": Loading("10.16.2.10", None)}
    assert (
        finding("several-tensorrts", orin(installations=(system,), loading=other)).status
        == "problem"
    )


@pytest.mark.parametrize(
    ("l4t", "version", "status"),
    [
        ("35.4.1", "8.5.2", "problem"),
        ("36.3.0", "8.6.2", "problem"),
        ("36.4.0", "10.3.0", "ok"),
        ("36.4.3", "8.6.2", "problem"),
        ("39.2.0", "10.16.2.10", "ok"),
        ("39.2.0", "11.4.1", "ok"),
    ],
)
def test_a_jetpack_before_6_1_has_no_ipluginv3(l4t: str, version: str, status: str) -> None:
    board = machine(ORIN, replace(NANO, l4t=l4t))
    seen = orin(machine=board, loading={"tensorrt": Loading(version, None)})
    found = finding("tensorrt-too-old", seen)
    assert found.status == status
    assert (found.mend is not None) == (status == "problem")


@pytest.mark.parametrize(
    ("gpu", "cuda", "version", "status"),
    [
        (ORIN, "13.2", "10.13.3.9", "problem"),
        (ORIN, "13.2", "10.16.2.10", "ok"),
        (ORIN, "12.6", "10.3.0", "ok"),
        (replace(T4, sm=61), "13.0", "11.4.1", "problem"),
        (T4, "13.0", "11.4.1", "ok"),
    ],
)
def test_a_tensorrt_without_kernels_for_the_gpu_is_a_problem(gpu, cuda, version, status) -> None:
    seen = facts(machine=machine(gpu, cuda=cuda), loading={"tensorrt": Loading(version, None)})
    assert finding("gpu-not-supported", seen).status == status


@pytest.mark.parametrize(
    ("opset", "version", "status"),
    [
        (18, "10.3.0", "ok"),
        (19, "10.3.0", "ok"),
        (20, "10.3.0", "cannot tell"),
        (25, "10.3.0", "problem"),
        (24, "10.16.2", "ok"),
        (25, "11.4.1", "cannot tell"),
        (20, "8.5.2", "problem"),
        (18, None, "ok"),
        (22, None, "cannot tell"),
    ],
)
def test_an_opset_is_compared_with_what_the_parser_is_known_to_take(opset, version, status) -> None:
    loading = {"tensorrt": Loading(version, None)} if version else {}
    graph = replace(GRAPH, opset=opset)
    found = finding("onnx-too-new", orin(subject=subject(graph=graph), loading=loading))
    assert found.status == status
    assert f"opset {opset}" in found.found


@pytest.mark.parametrize(
    ("cuda", "package", "status"),
    [
        ("12.6", "tensorrt-cu13", "problem"),
        ("13.2", "tensorrt-cu13", "ok"),
        ("13.2", "tensorrt-cu12", "ok"),
        ("12.6", "tensorrt", "cannot tell"),
    ],
)
def test_a_driver_older_than_tensorrts_cuda_is_a_problem(cuda, package, status) -> None:
    installed = (Installation(f"Python package {package}", "10.13.3.9"),)
    found = finding("driver-too-old", facts(machine=machine(cuda=cuda), installations=installed))
    assert found.status == status
    if status == "problem":
        assert "driver 580 or later" in str(found.mend)


def test_a_driver_that_does_not_start_is_a_problem() -> None:
    stuck = machine(None, cuda="12.6", reason="the CUDA driver does not start (error 35)")
    found = finding("driver-too-old", facts(machine=stuck))
    assert found.status == "problem"
    assert "error 35" in found.found
