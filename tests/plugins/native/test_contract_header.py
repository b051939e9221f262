# SPDX-License-Identifier: Apache-2.0
"""``PluginSpec`` -> C++ header, as text; what it means in C++ is test_contract_in_cpp.py's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stormrt.plugins.derive.cpp_header import (
    SOURCES,
    contract_digest,
    contract_header,
    identifier,
    kernel_revision,
    native_plugins,
    symbols_of,
    write_headers,
)
from stormrt.plugins.selective_scan_2d import SPEC


@pytest.mark.parametrize(
    ("name", "expected"), [("x", "kX"), ("dt_bias", "kDtBias"), ("H'", "kHPrime"), ("K", "kK")]
)
def test_names_become_constants(name: str, expected: str):
    assert identifier(name) == expected


def test_symbols_are_in_the_order_in_which_the_shapes_name_them():
    assert symbols_of(SPEC) == ("B", "D", "H", "W", "K", "N")


def test_a_header_names_every_input_and_output():
    text = contract_header(SPEC, "revision")
    for position, tensor in enumerate(SPEC.inputs):
        assert f"{identifier(tensor.name)} = {position}," in text
    assert '"SelectiveScan2D", "1", "stormrt"' in text
    assert '{"K", 4}' in text


def test_every_change_of_the_contract_changes_its_digest():
    first, *rest = SPEC.inputs
    changed = (
        dataclasses.replace(SPEC, version="2"),
        dataclasses.replace(SPEC, constants=(("K", 2),)),
        dataclasses.replace(SPEC, io_dtypes=("float32",)),
        dataclasses.replace(SPEC, inputs=(*rest, first)),
        dataclasses.replace(SPEC, inputs=(dataclasses.replace(first, dtype="float32"), *rest)),
        dataclasses.replace(SPEC, inputs=(dataclasses.replace(first, shape=("B",)), *rest)),
    )
    digests = [contract_digest(spec) for spec in (SPEC, *changed)]
    assert len(set(digests)) == len(digests)
    # Words are no contract.
    assert contract_digest(dataclasses.replace(SPEC, doc="other words")) == digests[0]


def test_a_changed_kernel_is_another_revision(tmp_path: Path):
    (tmp_path / SPEC.torch_name).mkdir()
    kernel = tmp_path / SPEC.torch_name / "kernel.cu"
    kernel.write_text("// one")
    before = kernel_revision(SPEC, tmp_path)
    kernel.write_text("// two")
    assert kernel_revision(SPEC, tmp_path) != before


def test_headers_that_are_right_are_not_written_again(tmp_path: Path):
    write_headers(tmp_path, "sm_75")
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    write_headers(tmp_path, "sm_75")
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == times
    write_headers(tmp_path, "sm_87")
    changed = {p.name for p in tmp_path.iterdir() if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {"plugin_list.h"}


def test_every_folder_with_a_plugin_is_listed():
    folders = {path.parent.name for path in SOURCES.glob("*/plugin.cpp")}
    assert {spec.torch_name for spec in native_plugins()} == folders
