# SPDX-License-Identifier: Apache-2.0
"""``stormrt targets check``: tables, JSON and exit codes, on machines that are made up."""

from __future__ import annotations

import json
import sys

import pytest

from stormrt.pipeline import probe
from stormrt.pipeline.cli.main import main
from stormrt.pipeline.probe import CudaDriver, Gpu, Jetson, Machine


def machine(
    *gpus: Gpu,
    jetson: Jetson | None = None,
    arch: str = "x86_64",
    tensorrt: str | None = "10.13.3.9",
) -> Machine:
    packages = (("numpy", "2.1.0"), *([("tensorrt", tensorrt)] if tensorrt else []))
    reason = None if gpus else "the CUDA driver sees no GPU"
    return Machine(
        system="Linux 6.8",
        arch=arch,
        python="3.11.2",
        cpu="a CPU",
        cpu_count=4,
        memory_mib=32000,
        packages=packages,
        cuda=CudaDriver("13.0", "580.82", gpus, reason),
        jetson=jetson,
        nvcc=None,
    )


T4 = Gpu(0, "Tesla T4", 75, 40, 14912)
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", 90, 132, 81079)
ORIN = Gpu(0, "Orin", 87, 8, 7620)


@pytest.fixture
def check(monkeypatch, capfd):
    """Runs `stormrt targets check ARGUMENTS` on a made-up machine."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run(here: Machine, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(probe, "probe_machine", lambda: here)
        monkeypatch.setattr(sys, "argv", ["stormrt", "targets", "check", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def test_the_targets_own_machine_fits(check) -> None:
    code, out, _ = check(machine(T4), "t4")
    assert code == 0
    assert out.splitlines()[-1].strip() == "fits"
    assert "not installed" in out  # tensorrt_rtx, which does no harm


def test_another_gpu_does_not_fit_and_the_exit_code_says_so(check) -> None:
    code, out, _ = check(machine(H100), "t4")
    assert code == 1
    assert "does not fit" in out
    assert "9.0" in out


def test_a_difference_that_does_no_harm_is_told_with_exit_code_0(check) -> None:
    code, out, _ = check(machine(Gpu(0, "Quadro RTX 8000", 75, 72, 48000)), "t4")
    assert code == 0
    assert "differs (no harm)" in out


def test_without_a_gpu_the_reason_is_told_with_exit_code_3(check) -> None:
    code, out, err = check(machine(), "t4")
    assert code == 3
    assert "sees no GPU" in err
    assert out == ""


def test_all_recipes_are_compared_where_none_is_named_and_the_nearest_is_first(check) -> None:
    orin = Jetson("NVIDIA Jetson Orin Nano Developer Kit", "36.4.3", "6.2", "15W")
    code, out, _ = check(machine(ORIN, jetson=orin, arch="aarch64", tensorrt="10.3.0"))
    assert code == 0
    rows = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert rows[0] == "orin-nano-8g"
    assert check(machine(H100))[0] == 1  # no recipe fits


def test_a_jetson_that_does_not_tell_its_jetpack_reads_unknown(check) -> None:
    orin = Jetson(probe.UNKNOWN, "36.4.3", probe.UNKNOWN, probe.UNKNOWN)
    here = machine(ORIN, jetson=orin, arch="aarch64", tensorrt=probe.UNKNOWN)
    code, out, _ = check(here, "orin-nano-8g", "--json")
    found = {fact["what"]: fact["status"] for fact in json.loads(out)[0]["facts"]}
    assert code == 0
    assert found["JetPack"] == found["tensorrt"] == found["board"] == "unknown"


def test_json_has_every_fact(check) -> None:
    code, out, _ = check(machine(H100), "t4", "--json")
    (result,) = json.loads(out)
    assert code == 1
    assert result["target"] == "t4"
    assert result["fits"] is False
    assert {fact["what"]: fact["status"] for fact in result["facts"]} == {
        "compute capability": "differs",
        "CPU": "same",
        "GPU": "differs",
        "multiprocessors": "differs",
        "memory": "differs",
        "tensorrt": "same",
        "tensorrt_rtx": "differs",
    }


def test_an_unknown_target_is_refused(check) -> None:
    code, _, err = check(machine(T4), "t5")
    assert code == 2
    assert "did you mean" in err


def test_this_machine_itself_is_compared_or_has_no_gpu(monkeypatch, capfd) -> None:
    """The real probe: whatever it finds, there is an answer and no traceback."""
    monkeypatch.setattr(sys, "argv", ["stormrt", "targets", "check", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, _ = capfd.readouterr()
    assert stopped.value.code in (None, 0, 1, 3)
    assert ("error" in json.loads(out)) == (stopped.value.code == 3)
