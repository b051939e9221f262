# SPDX-License-Identifier: Apache-2.0
"""A recipe and a machine, fact by fact: what differs, what of it matters, and what is unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stormrt.targets import list_targets, load_target
from stormrt.targets.check import Comparison, MachineFacts, compare, distance, fits

T4 = MachineFacts(
    gpu="Tesla T4",
    sm=75,
    sm_count=40,
    arch="x86_64",
    memory_mib=14912,  # ECC takes the rest of 16384
    is_jetson=False,
    board=None,
    jetpack=None,
    l4t=None,
    runtimes=(("tensorrt", "10.13.3.9"),),
)
ORIN_NX = MachineFacts(
    gpu="Orin",
    sm=87,
    sm_count=8,
    arch="aarch64",
    memory_mib=14486,
    is_jetson=True,
    board="NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
    jetpack="6.2.1",
    l4t="36.4.4",
    runtimes=(("tensorrt", "10.3.0"),),
)


def rows(name: str, machine: MachineFacts) -> dict[str, Comparison]:
    return {c.what: c for c in compare(load_target(name), machine)}


def faults(name: str, machine: MachineFacts) -> list[str]:
    return [c.what for c in compare(load_target(name), machine) if c.is_fault]


def test_a_t4_fits_its_recipe_though_the_driver_calls_it_tesla_and_one_runtime_is_missing() -> None:
    found = rows("t4", T4)
    assert fits(tuple(found.values()))
    assert found["GPU"].status == "same"
    assert found["memory"].status == "same"
    assert found["tensorrt"].status == "same"
    assert found["tensorrt_rtx"].status == "differs"
    assert not found["tensorrt_rtx"].matters
    assert "JetPack" not in found


def test_an_orin_nx_fits_its_recipe_and_an_update_of_a_jetpack_is_that_jetpack() -> None:
    found = rows("orin-nx-16g", ORIN_NX)
    assert fits(tuple(found.values()))
    assert {c.status for c in found.values()} == {"same"}
    assert found["JetPack"].machine == "6.2.1"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"sm": 89}, "compute capability"),
        ({"arch": "x86_64"}, "CPU"),
        ({"memory_mib": 6000}, "memory"),
        ({"jetpack": "5.1.2"}, "JetPack"),
        ({"jetpack": "6.0"}, "JetPack"),
        ({"runtimes": (("tensorrt", "8.6.2"),)}, "tensorrt"),
        ({"runtimes": ()}, "tensorrt"),
        ({"jetpack": "7.2"}, "TensorRT of JetPack 7.2"),  # 10.3 is older than 7.2's
    ],
)
def test_a_difference_that_matters_is_a_fault(change: dict[str, object], fault: str) -> None:
    assert fault in faults("orin-nx-16g", replace(ORIN_NX, **change))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"board": "NVIDIA Jetson AGX Orin Developer Kit"}, "board"),
        ({"sm_count": 4}, "multiprocessors"),
        ({"memory_mib": 30000}, "memory"),
    ],
)
def test_another_module_of_the_same_generation_is_told_and_is_no_fault(
    change: dict[str, object], what: str
) -> None:
    found = rows("orin-nx-16g", replace(ORIN_NX, **change))
    assert fits(tuple(found.values()))
    assert [c.what for c in found.values() if c.status == "differs"] == [what]
    assert found[what].note


def test_fewer_multiprocessors_may_be_the_power_mode() -> None:
    assert "nvpmodel" in rows("orin-nx-16g", replace(ORIN_NX, sm_count=4))["multiprocessors"].note
    assert "nvpmodel" not in rows("t4", replace(T4, sm_count=36))["multiprocessors"].note


def test_what_a_machine_does_not_tell_is_unknown_and_no_fault() -> None:
    silent = replace(ORIN_NX, board=None, jetpack=None, l4t=None, runtimes=(("tensorrt", None),))
    found = rows("orin-nx-16g", silent)
    assert [c.what for c in found.values() if c.status == "unknown"] == [
        "board",
        "JetPack",
        "tensorrt",
    ]
    assert fits(tuple(found.values()))


def test_a_version_that_is_none_is_unknown() -> None:
    odd = replace(ORIN_NX, runtimes=(("tensorrt", "10.3-custom build"),))
    assert rows("orin-nx-16g", odd)["tensorrt"].status == "unknown"


def test_a_jetpack_that_is_no_version_is_not_one_that_the_recipe_knows() -> None:
    assert faults("orin-nx-16g", replace(ORIN_NX, jetpack="rev. 2")) == ["JetPack"]


def test_tensorrt_11_goes_with_jetpack_7_2_2_and_later_on_an_agx_alone() -> None:
    agx = replace(
        ORIN_NX, sm_count=16, memory_mib=62000, runtimes=(("tensorrt", "11.4.1"),), jetpack="7.2.3"
    )
    assert faults("orin-agx-64g", agx) == []
    assert faults("orin-agx-64g", replace(agx, jetpack="7.2.1")) == ["TensorRT of JetPack 7.2"]
    assert "tensorrt" in faults("orin-agx-industrial-64g", agx)


def test_a_card_is_no_jetson_and_a_jetson_no_card() -> None:
    assert "JetPack" in faults("orin-nx-16g", T4)
    assert "JetPack" in faults("t4", ORIN_NX)


def test_the_nearest_recipe_is_the_machines_own() -> None:
    def nearest(machine: MachineFacts) -> str:
        return min(list_targets(), key=lambda n: distance(compare(load_target(n), machine)))

    assert nearest(T4) == "t4"
    assert nearest(ORIN_NX) == "orin-nx-16g"
    card = replace(T4, gpu="NVIDIA GeForce RTX 4090", sm=89, sm_count=128, memory_mib=24077)
    assert nearest(card) == "rtx-4090"
