# SPDX-License-Identifier: Apache-2.0
"""What a path is: an output folder, an engine, a graph, or a mistake."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from stormrt.errors import InputError
from stormrt.pipeline.doctor.subject import GraphFacts, read_graph, read_subject
from tests.pipeline.doctor.boards import plan
from tests.pipeline.doctor.graphs import graph
from tests.runtime.folders import SCAN, write_folder


def test_a_folder_is_its_manifest_its_engine_and_what_its_file_begins_with(tmp_path) -> None:
    folder = write_folder(tmp_path / "built", plan(), version="10.3.0")
    found = read_subject(folder)
    assert found.manifest is not None
    assert found.record is not None
    assert found.record.version == "10.3.0"
    assert found.header is not None
    assert found.header.version == (10, 3, 0, 30)
    assert found.report is None


def test_an_engine_whose_library_is_missing_is_read_all_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("STORMRT_PLUGIN_LIB", raising=False)
    folder = write_folder(tmp_path / "built", plan(), plugins=(SCAN,))
    for path in (folder, folder / "engine.plan"):
        found = read_subject(path)
        assert found.record is None
        assert found.manifest is not None
        assert found.header is not None


def test_a_bundle_has_no_engine_yet(tmp_path) -> None:
    found = read_subject(write_folder(tmp_path / "bundle", built=False))
    assert (found.record, found.header) == (None, None)


def test_a_plan_alone_is_its_header(tmp_path) -> None:
    path = tmp_path / "some.engine"
    path.write_bytes(plan())
    found = read_subject(path)
    assert found.manifest is None
    assert found.header is not None
    assert found.graph is None


def test_a_graph_is_its_opset_and_types(tmp_path) -> None:
    half, whole = np.zeros((3, 4), np.float16), np.zeros(5, np.float32)
    path = graph(tmp_path / "m.onnx", half, whole, np.zeros(9, np.int64), opset=17)
    expected = GraphFacts(17, {"fp16": 12, "fp32": 5}, quantised=False)
    assert read_subject(path).graph == expected
    quantised = graph(tmp_path / "q.onnx", np.ones((), np.float32), op="QuantizeLinear")
    assert read_graph(quantised) == GraphFacts(18, {"fp32": 1}, quantised=True)


def test_a_graph_cannot_be_read_without_the_package_onnx(tmp_path, monkeypatch) -> None:
    path = graph(tmp_path / "m.onnx")
    monkeypatch.delitem(sys.modules, "stormrt.pipeline.onnx_file", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert read_graph(path) is None


@pytest.mark.parametrize("name", ["nowhere", "nowhere/engine.plan"])
def test_a_path_that_is_not_there_is_refused(tmp_path, name: str) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        read_subject(tmp_path / name)


def test_a_folder_without_a_manifest_is_refused_with_what_it_should_be(tmp_path) -> None:
    with pytest.raises(InputError, match="point at an output folder"):
        read_subject(tmp_path)
