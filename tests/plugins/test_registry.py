# SPDX-License-Identifier: Apache-2.0
"""Finding the operators, and refusing folders that are not one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stormrt.plugins
from stormrt.errors import InputError
from stormrt.plugins.registry import all_plugins, plugin_module

SPEC_LIKE = """
from dataclasses import replace
from stormrt.plugins.spatial_unit_gather import SPEC as like
SPEC = replace(like, name={name!r}, torch_name={torch_name!r})
"""


OPERATORS = ["SelectiveScan2D", "SpatialUnitGather", "SpatialUnitMerge", "SpatialUnitScatter"]


def test_exactly_the_four_operators_are_found_under_their_onnx_names() -> None:
    found = all_plugins()
    assert list(found) == OPERATORS
    assert all(spec.name == name for name, spec in found.items())


@pytest.mark.parametrize("name", ["torch_op", "onnx_function"])
def test_every_operator_has_the_modules_that_are_derived_upon(name: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    for spec in all_plugins().values():
        module = plugin_module(spec, name)
        assert module.__name__ == f"stormrt.plugins.{spec.torch_name}.{name}"


@pytest.fixture
def add_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Adds a folder to ``plugins/`` as the registry sees it; undone after the test."""
    monkeypatch.setattr(stormrt.plugins, "__path__", [*stormrt.plugins.__path__, str(tmp_path)])
    added: list[str] = []

    def add(name: str, source: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
        added.append(name)

    all_plugins.cache_clear()
    yield add
    all_plugins.cache_clear()
    for name in added:
        sys.modules.pop(f"stormrt.plugins.{name}", None)
        vars(stormrt.plugins).pop(name, None)


def test_a_new_folder_is_an_operator_without_being_listed_anywhere(add_folder: Callable) -> None:
    add_folder("token_merge", SPEC_LIKE.format(name="TokenMerge", torch_name="token_merge"))
    assert list(all_plugins()) == [*OPERATORS, "TokenMerge"]


def test_a_module_beside_the_folders_is_no_operator(add_folder: Callable, tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text("raise RuntimeError('imported')\n")
    assert list(all_plugins()) == OPERATORS


@pytest.mark.parametrize("source", ["", "SPEC = None\n", "SPEC = {'name': 'TokenMerge'}\n"])
def test_a_folder_without_a_spec_is_refused_by_path(add_folder: Callable, source: str) -> None:
    add_folder("token_merge", source)
    with pytest.raises(InputError, match="declares no SPEC") as caught:
        all_plugins()
    assert "plugins/token_merge/__init__.py" in str(caught.value)


def test_a_second_operator_of_the_same_name_is_refused(add_folder: Callable) -> None:
    add_folder("zoom", SPEC_LIKE.format(name="SpatialUnitGather", torch_name="zoom"))
    with pytest.raises(InputError, match="'SpatialUnitGather' is declared twice") as caught:
        all_plugins()
    assert "plugins/zoom" in str(caught.value)


def test_a_folder_named_otherwise_than_its_pytorch_operator_is_refused(
    add_folder: Callable,
) -> None:
    add_folder("merge", SPEC_LIKE.format(name="TokenMerge", torch_name="token_merge"))
    with pytest.raises(InputError, match="differ in name") as caught:
        all_plugins()
    assert "got:      token_merge" in str(caught.value)
    assert "expected: merge" in str(caught.value)
