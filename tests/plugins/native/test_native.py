# SPDX-License-Identifier: Apache-2.0
"""The library through ctypes, as PyTorch's CUDA operators will call it; no GPU is needed here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.plugins import native
from stormrt.plugins.builder import BuildResult
from stormrt.plugins.native import DeviceTensor, NativeLibrary, library_path, load_library
from stormrt.plugins.selective_scan_2d import SPEC as SCAN
from stormrt.plugins.spatial_unit_gather import SPEC as GATHER
from stormrt.plugins.spatial_unit_merge import SPEC as MERGE
from stormrt.plugins.spatial_unit_scatter import SPEC as SCATTER

SCAN_SHAPES = [(2, 6, 5, 7), (2, 24, 5, 7), (2, 4, 5, 7), (2, 4, 5, 7), (24, 1), (24,), (24,)]
LINE_SHAPES = {  # inputs, and the output
    GATHER: ([(2, 6, 5, 7), (2, 4), (2, 3)], (2, 6, 4, 3)),
    SCATTER: ([(2, 6, 4, 3), (2, 5), (2, 7)], (2, 6, 5, 7)),
    MERGE: ([(2, 6, 5, 7), (2, 4), (2, 3), (2, 5), (2, 7)], (2, 6, 4, 3)),
}


@pytest.fixture
def opened(library: BuildResult) -> NativeLibrary:
    return load_library(library.core)


def tensors(shapes) -> list[DeviceTensor]:
    return [DeviceTensor(0, shape) for shape in shapes]


def test_tells_what_it_was_built_from(opened: NativeLibrary, library: BuildResult):
    assert opened.build_info["abi"] == native.ABI_VERSION
    assert opened.build_info["tensorrt_headers"] == library.manifest.tensorrt_headers
    assert opened.build_info["plugins"]["archs"] == list(library.manifest.archs)
    assert library.manifest.sources.startswith(opened.build_info["plugins"]["sources"])
    assert opened.contract_mismatches() == ()


def test_counts_tactics(opened: NativeLibrary):
    for dtype in SCAN.io_dtypes:
        assert opened.count_tactics(SCAN, SCAN_SHAPES, [(2, 6, 5, 7)], io_dtype=dtype) >= 1
    for spec, (inputs, output) in LINE_SHAPES.items():
        for dtype in spec.io_dtypes:
            assert opened.count_tactics(spec, inputs, [output], io_dtype=dtype) == 0


def test_refuses_what_does_not_fit_the_contract_before_it_touches_memory(opened: NativeLibrary):
    def launch(inputs, outputs, dtype="float32"):
        opened.launch(SCAN, tensors(inputs), tensors(outputs), io_dtype=dtype, stream=0)

    with pytest.raises(InputError, match="6 inputs and 1 outputs, expected 7 and 1"):
        launch(SCAN_SHAPES[:-1], [(2, 6, 5, 7)])
    with pytest.raises(InputError, match="'a' has rank 1, expected 2"):
        launch([*SCAN_SHAPES[:4], (24,), (24,), (24,)], [(2, 6, 5, 7)])
    with pytest.raises(InputError, match="'dt_bias' does not fit the others: axis 0 is 23"):
        launch([*SCAN_SHAPES[:-1], (23,)], [(2, 6, 5, 7)])
    with pytest.raises(
        InputError, match=r"'y' has the shape \[2, 6, 7, 5\], expected \[2, 6, 5, 7"
    ):
        launch(SCAN_SHAPES, [(2, 6, 7, 5)])
    with pytest.raises(InputError, match="cannot be"):
        launch(SCAN_SHAPES, [(2, 6, 5, 7)], dtype="int32")
    with pytest.raises(InputError, match="rank 9"):
        launch([(1,) * 9, *SCAN_SHAPES[1:]], [(2, 6, 5, 7)])


@pytest.mark.parametrize(
    ("spec", "changed", "reason"),
    [
        (GATHER, {1: (3, 4)}, "'rows' does not fit the others: axis 0 is 3"),
        (SCATTER, {1: (2, 5, 1)}, "'row_of' has rank 3, expected 2"),
        (SCATTER, {2: (1, 7)}, "'col_of' does not fit the others: axis 0 is 1"),
        (SCATTER, {1: (2, 6)}, r"'y' has the shape \[2, 6, 5, 7\], expected \[2, 6, 6, 7\]"),
        (MERGE, {3: (2, 4)}, "'row_weights' does not fit the others: axis 1 is 4"),
        (MERGE, {4: (2, 5)}, "'col_weights' does not fit the others: axis 1 is 5"),
        (MERGE, {2: (3,)}, "'col_starts' has rank 1, expected 2"),
        (MERGE, {2: (2, 7)}, r"'y' has the shape \[2, 6, 4, 3\], expected \[2, 6, 4, 7\]"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_lines_that_do_not_fit_are_refused(opened: NativeLibrary, spec, changed, reason):
    inputs, output = LINE_SHAPES[spec]
    shapes = [changed.get(index, shape) for index, shape in enumerate(inputs)]
    with pytest.raises(InputError, match=reason):
        opened.launch(spec, tensors(shapes), tensors([output]), io_dtype="float16", stream=0)


def test_a_library_of_other_contracts_is_refused(
    library: BuildResult, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(native, "contract_digest", lambda spec: "another")
    load_library.cache_clear()
    with pytest.raises(InputError, match="other contracts") as caught:
        load_library(library.core)
    assert SCAN.name in str(caught.value.got)


def test_what_is_no_plugin_library_is_refused(tools, tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        NativeLibrary(tmp_path / "none.so")
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(InputError, match="no plugin library"):
        NativeLibrary(tmp_path / "text.so")
    source = tmp_path / "other.cpp"
    source.write_text("int nothing;")
    with pytest.raises(InputError, match="no plugin library"):
        NativeLibrary(compile_shared(tools, source))


def test_a_library_of_another_interface_is_refused(tools, tmp_path: Path):
    source = tmp_path / "newer.cpp"
    source.write_text(
        'extern "C" { int stormrt_abi_version() { return 99; } void stormrt_build_info() {} '
        "void stormrt_launch() {} void stormrt_count_tactics() {} }"
    )
    with pytest.raises(InputError, match="another version") as caught:
        NativeLibrary(compile_shared(tools, source))
    assert caught.value.got == "interface 99"


def test_the_library_is_named_by_a_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STORMRT_PLUGIN_LIB", "/some/where.so")
    assert library_path() == Path("/some/where.so")
    monkeypatch.delenv("STORMRT_PLUGIN_LIB")
    with pytest.raises(EnvironmentMissingError, match="no plugin library is named"):
        library_path()


def compile_shared(tools, source: Path) -> Path:
    out = source.with_suffix(".so")
    subprocess.run([tools.host_compiler, "-shared", "-fPIC", source, "-o", out], check=True)
    return out
