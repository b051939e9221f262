# SPDX-License-Identifier: Apache-2.0
"""Reading a manifest without pydantic: the same facts as with it, and one error for any damage.

What can go wrong: the two readings differ; a key that is missing gives a traceback on the board; a
file outside the folder is read.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from stormrt.errors import InputError
from stormrt.pipeline.device.board import version_in
from stormrt.pipeline.device.bundle import read_manifest
from stormrt.pipeline.schema import Manifest
from stormrt.targets import list_targets, load_target, parse_target
from tests.pipeline.device.bundles import make_bundle


@pytest.mark.parametrize("target", list_targets())
def test_a_board_is_what_its_recipe_says(tmp_path, rng, target):
    folder = make_bundle(tmp_path / "b", rng, target=target, int8=True)
    board = read_manifest(folder).board
    manifest = Manifest.read(folder / "manifest.json")
    recipe = parse_target(manifest.recipe, origin="test")
    assert recipe == load_target(target)
    assert board.id == recipe.id
    assert (board.device.gpu, board.device.sm) == (recipe.device.gpu, recipe.device.sm)
    assert board.build.workspace_mib == recipe.build.workspace_mib
    assert board.build.builder_optimization_level == recipe.build.builder_optimization_level
    assert [r.name for r in board.runtimes] == list(recipe.runtime_names)
    for runtime in recipe.runtimes:
        ours = board.runtime(runtime.name)
        assert (ours.version, ours.lowering) == (runtime.version, runtime.lowering)
        for precision in recipe.build.precisions:
            expected = recipe.tolerance_for(precision, runtime.name)
            allowed = board.tolerance_for(precision, runtime.name)
            for name in ("rel_l2", "cosine", "argmax_agreement"):
                assert getattr(allowed, name) == getattr(expected, name)
    with pytest.raises(InputError, match="has no runtime"):
        board.runtime("torch")


def paths(value: object, prefix: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: list[tuple[object, ...]] = []
    for key, item in items:
        found.append((*prefix, key))
        if isinstance(item, (dict, list)):
            found += paths(item, (*prefix, key))
    return found


@pytest.mark.parametrize("junk", ["removed", None, 7, "text", [], {}])
def test_any_damage_is_one_error_or_does_not_matter(tmp_path, rng, junk):
    folder = make_bundle(tmp_path / "b", rng, int8=True)
    path = folder / "manifest.json"
    text = path.read_text()
    told = []
    for place in paths(json.loads(text)):
        raw = json.loads(text)
        holder = raw
        for key in place[:-1]:
            holder = holder[key]
        if junk == "removed":
            del holder[place[-1]]
        else:
            holder[place[-1]] = junk
        path.write_text(json.dumps(raw))
        try:
            read_manifest(folder)
        except InputError as error:
            told.append(str(error))
    assert len(told) > 10
    assert all("manifest" in text or "has no runtime" in text for text in told)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_manifest_is_one_error(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(InputError, match="could not be read"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../b"])
def test_a_file_outside_the_folder_is_not_even_read(tmp_path, rng, name):
    folder = make_bundle(tmp_path / "b", rng)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["files"].append({"name": name, "sha256": "0" * 64, "size_bytes": 1})
    (folder / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"outside its folder|no name of a file|damaged"):
        read_manifest(folder).verify()


# --- Ranges of versions --------------------------------------------------------------------------

numbers = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(lambda v: ".".join(map(str, v)))
clauses = st.one_of(
    st.tuples(st.sampled_from([">=", "<=", "==", "!=", ">", "<"]), numbers).map("".join),
    st.tuples(st.sampled_from(["==", "!="]), numbers).map(lambda c: f"{c[0]}{c[1]}.*"),
    numbers.filter(lambda v: "." in v).map(lambda v: f"~={v}"),
)


@settings(max_examples=300, deadline=None)
@given(numbers, st.lists(clauses, min_size=1, max_size=4).map(",".join))
def test_a_version_is_in_a_range_where_packaging_says_so(version, specifier):
    assert version_in(version, specifier) == SpecifierSet(specifier).contains(Version(version))


def test_a_release_candidate_counts_as_its_release():
    assert version_in("10.3.0rc1", ">=10.3,<11")
    assert not version_in("11.4.0.106", ">=10.3,<12,!=11.4.0.*")
    assert version_in("11.4.1", ">=10.3,<12,!=11.4.0.*")


@pytest.mark.parametrize(("version", "specifier"), [("10", "===10"), ("x", ">=1"), ("1", "~=1")])
def test_what_is_no_range_or_no_version_is_an_error(version, specifier):
    with pytest.raises(ValueError, match=r"range|version|two numbers"):
        version_in(version, specifier)


def test_ranges_of_all_recipes_can_be_read():
    for name in list_targets():
        for runtime in load_target(name).runtimes:
            version_in("10.3.0", runtime.version)


def test_a_bundles_folder_is_not_changed_by_reading_it(tmp_path: Path, rng):
    folder = make_bundle(tmp_path / "b", rng)
    before = sorted(p.name for p in folder.iterdir())
    read_manifest(folder).verify()
    assert sorted(p.name for p in folder.iterdir()) == before
