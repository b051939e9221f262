# SPDX-License-Identifier: Apache-2.0
"""Recipes: every packaged one is sane, and every mistake in one is named by file and key."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from pydantic import ValidationError

import stormrt.targets
from stormrt.errors import InputError
from stormrt.targets import Target, dump_target, list_targets, load_target, parse_target
from stormrt.targets.loading import tomllib
from stormrt.targets.schema import Build, Device, Quantization, RuntimeRecipe, Tolerance

FOLDER = Path(stormrt.targets.__file__).parent
ORINS = tuple(name for name in list_targets() if name.startswith("orin-"))

RECIPE = """
schema = 1
id = "my-board"
description = "A board of mine"
[device]
gpu = "A GPU"
sm = 86
sm_count = 20
arch = "x86_64"
memory_mib = 8192
memory_shared = false
bandwidth_gb_s = 300
[software]
jetpack = []
[[runtime]]
name = "tensorrt_rtx"
version = ">=1.7"
lowering = "native"
builds_without_gpu = true
[build]
precisions = ["fp16"]
default_precision = "fp16"
workspace_mib = 1024
builder_optimization_level = 3
[tolerance.fp16]
rel_l2 = 1e-2
cosine = 0.999
argmax_agreement = 0.9
selection_agreement = 0.9
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def rejection(folder: Path, text: str) -> str:
    """The message for a recipe that must not load; it always names the file."""
    path = write(folder, text)
    with pytest.raises(InputError) as caught:
        load_target(path)
    message = str(caught.value)
    assert str(path) in message
    assert "pydantic" not in message.lower()
    assert "http" not in message
    return message


CARDS = {"t4": 75, "l4": 89, "rtx-3090": 86, "rtx-4090": 89, "rtx-5090": 120}
"""Compute capability of each card, times ten (developer.nvidia.com/cuda-gpus)."""


def test_the_targets_are_all_orin_modules_and_five_cards() -> None:
    assert list_targets() == (
        "l4",
        "orin-agx-32g",
        "orin-agx-64g",
        "orin-agx-industrial-64g",
        "orin-nano-4g",
        "orin-nano-8g",
        "orin-nx-16g",
        "orin-nx-8g",
        "rtx-3090",
        "rtx-4090",
        "rtx-5090",
        "t4",
    )
    assert set(list_targets()) == {*ORINS, *CARDS}


@pytest.mark.parametrize("name", list_targets())
def test_a_packaged_recipe_is_sane(name: str) -> None:
    target = load_target(name)
    assert target.id == name
    assert target.device.sm == CARDS.get(name, 87)
    assert target.compute_capability in ("7.5", "8.6", "8.7", "8.9", "12.0")
    assert target.device.arch == ("x86_64" if name in CARDS else "aarch64")
    assert 30 <= target.device.bandwidth_gb_s <= 2000
    assert 4 <= target.device.sm_count <= 170
    assert 512 <= target.build.workspace_mib <= target.device.memory_mib / 4
    assert target.build.precisions[:2] == ("fp32", "fp16")
    assert target.build.default_precision == "fp16"
    assert "tensorrt" in target.runtime_names
    for precision in target.build.precisions:
        for runtime in target.runtime_names:
            tolerance = target.tolerance_for(precision, runtime)
            assert 0 < tolerance.rel_l2 < (0.5 if precision == "int8" else 0.1)
            assert (0.9 if precision == "int8" else 0.99) < tolerance.cosine < 1
            assert 0.5 < tolerance.argmax_agreement <= 1


@pytest.mark.parametrize("name", ORINS)
def test_an_orin_names_its_memory_and_leaves_most_of_it_to_the_cpu(name: str) -> None:
    target = load_target(name)
    gigabytes = int(name.rsplit("-", 1)[1].removesuffix("g"))
    assert target.device.memory_mib == gigabytes * 1024
    assert target.device.memory_shared
    assert target.build.workspace_mib == target.device.memory_mib // 8


@pytest.mark.parametrize("name", ORINS)
def test_jetpack_6_stays_on_tensorrt_10(name: str) -> None:
    releases = {release.version: release for release in load_target(name).software.jetpack}
    six = SpecifierSet(releases["6.2"].tensorrt)
    assert "10.3.0" in six
    assert "11.4.1" not in six
    assert "10.16.2" in SpecifierSet(releases["7.2"].tensorrt)


@pytest.mark.parametrize("name", ORINS)
def test_tensorrt_11_is_for_agx_orin_alone_and_from_11_4_1_on(name: str) -> None:
    supported = SpecifierSet(load_target(name).runtime("tensorrt").version)
    assert "10.3.0" in supported
    assert "8.6.2" not in supported
    assert ("11.4.1.5" in supported) == (name in ("orin-agx-32g", "orin-agx-64g"))
    assert "11.2.1" not in supported
    assert "11.4.0.106" not in supported
    assert "12.0" not in supported


@pytest.mark.parametrize("name", ORINS)
def test_no_orin_has_tensorrt_rtx(name: str) -> None:
    assert load_target(name).runtime_names == ("tensorrt",)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_builds_without_a_gpu_through_tensorrt_rtx_and_without_plugins(name: str) -> None:
    target = load_target(name)
    assert target.runtime("tensorrt_rtx").builds_without_gpu
    assert target.runtime("tensorrt_rtx").lowering == "native"
    assert not target.runtime("tensorrt").builds_without_gpu
    assert target.runtime("tensorrt").lowering == "plugin"
    assert target.software.jetpack == ()


NAMES = ("schema", "id", "description", "extends")
"""Keys that say what a recipe is, and are no facts about a board."""


def without_source(text: str) -> list[str]:
    """Keys of a recipe with no comment on their line nor right above."""
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines):
        code, _, comment = line.partition("#")
        key = re.match(r"\s*([\w-]+)\s*=", code)
        above = number > 0 and lines[number - 1].startswith("#")
        if key and key[1] not in NAMES and not comment.strip() and not above:
            found.append(line)
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.name)
def test_every_field_of_a_packaged_recipe_names_its_source(path: Path) -> None:
    """What a recipe inherits has its source in the base, which is one of these files too."""
    assert without_source(path.read_text(encoding="utf-8")) == []


def test_a_field_without_a_source_is_seen() -> None:
    good = 'id = "x"\n[device]\nsm = 87  # a page\n# another page\narch = "aarch64"\n'
    assert without_source(good) == []
    bad = 'sm_count = 8\n\ngpu = "Orin"  #\n[[runtime]]\nname = "tensorrt"\n'
    assert without_source(bad) == ["sm_count = 8", 'gpu = "Orin"  #', 'name = "tensorrt"']


@pytest.mark.parametrize("name", list_targets())
def test_every_field_is_written_in_a_recipe_or_its_base_and_none_left_to_a_default(
    name: str,
) -> None:
    own = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    base = f"_{own['extends']}.toml" if "extends" in own else None
    inherited = tomllib.loads((FOLDER / base).read_text(encoding="utf-8")) if base else {}

    def keys(table: str) -> set[str]:
        return {*inherited.get(table, {}), *own.get(table, {})}

    assert keys("device") == set(Device.model_fields)
    assert keys("build") == set(Build.model_fields)
    assert keys("quantization") == set(Quantization.model_fields)
    for precision in load_target(name).build.precisions:
        tolerance = {**inherited.get("tolerance", {}), **own.get("tolerance", {})}[precision]
        assert set(tolerance) == set(Tolerance.model_fields)
    for runtime in own.get("runtime", inherited.get("runtime")):
        assert {*runtime, "tolerance"} == set(RuntimeRecipe.model_fields)


def test_a_geforce_50_needs_the_first_tensorrt_that_has_blackwell() -> None:
    supported = SpecifierSet(load_target("rtx-5090").runtime("tensorrt").version)
    assert "10.8.0" in supported
    assert "10.7.0" not in supported
    assert "10.3.0" in SpecifierSet(load_target("rtx-4090").runtime("tensorrt").version)


def test_a_target_survives_its_dump_to_json() -> None:
    for name in list_targets():
        target = load_target(name)
        data = json.loads(json.dumps(dump_target(target)))
        assert parse_target(data, origin="bundle") == target


def test_a_target_is_frozen_and_hashable() -> None:
    target = load_target("t4")
    with pytest.raises(ValidationError):
        target.id = "other"
    assert len({target, load_target("t4")}) == 1


def test_a_recipe_of_the_users_own_loads_from_a_path(tmp_path: Path) -> None:
    path = write(tmp_path, RECIPE)
    assert load_target(path) == load_target(str(path))
    assert load_target(path).id == "my-board"
    assert load_target(path).device.bandwidth_gb_s == 300.0


def test_a_users_recipe_need_not_be_named_as_its_id(tmp_path: Path) -> None:
    assert load_target(write(tmp_path, RECIPE, "other.toml")).id == "my-board"


def test_a_users_recipe_extends_a_packaged_base_and_overrides_single_keys(tmp_path: Path) -> None:
    text = """
extends = "orin"
id = "orin-mine"
description = "An Orin of mine"
[device]
memory_mib = 16384
bandwidth_gb_s = 102.4
sm_count = 8
[build]
workspace_mib = 777
[tolerance.fp16]
rel_l2 = 5e-2
"""
    target = load_target(write(tmp_path, text))
    assert target.device.sm == 87
    assert target.build.workspace_mib == 777
    assert target.build.builder_optimization_level == 3
    assert target.tolerance_for("fp16", "tensorrt").rel_l2 == 5e-2
    assert target.tolerance_for("fp16", "tensorrt").cosine == 0.999


def test_an_array_of_a_recipe_replaces_the_bases_array_as_a_whole() -> None:
    versions = [release.version for release in load_target("orin-agx-64g").software.jetpack]
    assert versions == ["6.1", "6.2", "7.2", "7.2.2"]


def test_a_runtime_may_have_a_tolerance_of_its_own(tmp_path: Path) -> None:
    own = (
        "[runtime.tolerance.fp16]\nrel_l2 = 0.5\ncosine = 0.5\n"
        "argmax_agreement = 0.5\nselection_agreement = 0.5\n"
    )
    target = load_target(write(tmp_path, RECIPE.replace("[build]", own + "[build]")))
    assert target.tolerance_for("fp16", "tensorrt_rtx").rel_l2 == 0.5
    assert target.tolerance.fp16 is not None
    assert target.tolerance.fp16.rel_l2 == 1e-2


def test_an_unknown_target_is_answered_with_the_nearest_and_with_all() -> None:
    with pytest.raises(InputError) as caught:
        load_target("orin-nano-8gb")
    message = str(caught.value)
    assert "did you mean 'orin-nano-8g'" in message
    for name in list_targets():
        assert name in message


def test_a_target_that_is_near_to_none_gets_no_suggestion() -> None:
    with pytest.raises(InputError) as caught:
        load_target("xxxxxxxxxxxx")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["_orin", "orin", "", "../targets/t4"])
def test_a_base_or_a_path_without_ending_is_no_target(name: str) -> None:
    with pytest.raises(InputError, match="there is no target"):
        load_target(name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read[\s\S]*nowhere\.toml[\s\S]*No such file"):
        load_target(tmp_path / "nowhere.toml")


def test_a_file_that_is_not_text_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_target(path)


def test_broken_toml_is_named_with_its_line(tmp_path: Path) -> None:
    message = rejection(tmp_path, "schema = 1\nid = oops\n")
    assert "not valid TOML" in message
    assert "line 2" in message


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ("sm = 86", "sm = '86'", "device.sm", "valid integer"),
        ("sm = 86", "sm = true", "device.sm", "valid integer"),
        ("sm = 86", "sm = 8", "device.sm", "greater than or equal to 50"),
        ("sm = 86", "sm = 87", "runtime.0.name", "Orin"),
        ("sm = 86\n", "", "device.sm", "missing"),
        ("sm = 86", "sm = 86\nsm_cont = 1", "device.sm_cont", "did you mean 'sm_count'?"),
        ("schema = 1", "schema = 2", "schema", "should be 1"),
        ("schema = 1", "schema = 1\nzzz = 1", "zzz", "expected schema, id"),
        ('"my-board"', '"My Board"', "id", "pattern"),
        ('"x86_64"', '"x86"', "device.arch", "'x86_64' or 'aarch64'"),
        ("memory_mib = 8192", "memory_mib = 0", "device.memory_mib", "greater than 0"),
        ("workspace_mib = 1024", "workspace_mib = 2049", "build.workspace_mib", "quarter"),
        ("level = 3", "level = 6", "build.builder_optimization_level", "less than or equal to 5"),
        ('["fp16"]', '["bf16"]', "build.precisions.0", "'fp32', 'fp16' or 'int8'"),
        ('["fp16"]', "[]", "build.precisions", "at least 1"),
        ('["fp16"]', '["fp16", "fp16"]', "build.precisions", "twice"),
        ('["fp16"]', '["fp32"]', "build.default_precision", "not in"),
        ('["fp16"]', '["fp16", "fp32"]', "tolerance.fp32", "missing"),
        ("cosine = 0.999", "cosine = 1.5", "tolerance.fp16.cosine", "less than or equal to 1"),
        ("rel_l2 = 1e-2", "rel_l2 = 0", "tolerance.fp16.rel_l2", "greater than 0"),
        ('">=1.7"', '"1.7 or so"', "runtime.0.version", "not a version range"),
        ('">=1.7"', '""', "runtime.0.version", "empty version range"),
        ('"native"', '"plugin"', "runtime.0.lowering", "no plugins"),
        ('"tensorrt_rtx"', '"tensorrt"', "runtime.0.builds_without_gpu", "own GPU"),
        ('"tensorrt_rtx"', '"onnxruntime"', "runtime.0.name", "'tensorrt' or 'tensorrt_rtx'"),
        (
            "jetpack = []",
            'jetpack = [{version = "six", tensorrt = ">=10"}]',
            "software.jetpack.0.version",
            "not a version",
        ),
    ],
)
def test_a_wrong_recipe_names_the_file_and_the_key(
    tmp_path: Path, old: str, new: str, key: str, says: str
) -> None:
    assert RECIPE.count(old) == 1
    message = rejection(tmp_path, RECIPE.replace(old, new))
    assert f"mine.toml: {key}\n" in message
    assert says in message


def test_all_mistakes_are_told_together(tmp_path: Path) -> None:
    text = RECIPE.replace("sm = 86", "sm = 'x'").replace("level = 3", "level = 9")
    message = rejection(tmp_path, text)
    assert "2 problems" in message
    assert "device.sm: 'x'" in message
    assert "build.builder_optimization_level: 9" in message


def test_a_misspelt_key_is_told_as_unknown_and_as_missing(tmp_path: Path) -> None:
    message = rejection(tmp_path, RECIPE.replace("rel_l2 =", "rel_l =", 1))
    assert "tolerance.fp16.rel_l: unknown key; did you mean 'rel_l2'?" in message
    assert "tolerance.fp16.rel_l2: the key is missing" in message


def test_a_runtime_may_not_be_declared_twice(tmp_path: Path) -> None:
    runtime = RECIPE[RECIPE.index("[[runtime]]") : RECIPE.index("[build]")]
    message = rejection(tmp_path, RECIPE.replace("[build]", runtime + "[build]"))
    assert "runtime.1.name" in message
    assert "twice" in message


def test_an_unknown_base_is_rejected_with_those_that_exist(tmp_path: Path) -> None:
    message = rejection(tmp_path, 'extends = "xavier"\n' + RECIPE)
    assert "extends" in message
    assert "'xavier'" in message
    assert "one of orin" in message


def test_a_base_that_is_no_text_is_rejected(tmp_path: Path) -> None:
    assert "extends" in rejection(tmp_path, "extends = ['orin']\n" + RECIPE)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that stands for the packaged recipes."""
    monkeypatch.setattr("stormrt.targets.loading._folder", lambda: tmp_path)
    return tmp_path


def test_a_packaged_recipe_whose_id_is_not_its_file_name_is_rejected(packaged: Path) -> None:
    write(packaged, RECIPE, "their-board.toml")
    with pytest.raises(InputError, match=r"their-board\.toml: id[\s\S]*my-board"):
        load_target("their-board")


def test_a_base_that_extends_another_is_rejected(packaged: Path) -> None:
    write(packaged, "x = 1", "_a.toml")
    write(packaged, 'extends = "a"', "_b.toml")
    write(packaged, 'extends = "b"\n' + RECIPE, "my-board.toml")
    with pytest.raises(InputError, match=r"_b\.toml: extends"):
        load_target("my-board")


def test_a_runtime_that_the_target_has_not_is_refused_with_those_it_has() -> None:
    with pytest.raises(InputError, match=r"no runtime 'tensorrt_rtx'[\s\S]*expected: tensorrt"):
        load_target("orin-nx-8g").runtime("tensorrt_rtx")


@pytest.mark.parametrize("precision", ["bf16", "rel_l2", "model_fields"])
def test_a_precision_without_tolerance_is_refused(precision: str) -> None:
    with pytest.raises(InputError, match=r"fp32 or fp16"):
        load_target("t4").tolerance_for(precision, "tensorrt")


def test_the_folder_cannot_be_imported_by_its_short_name() -> None:
    spec = importlib.util.spec_from_file_location("targets", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"import stormrt\.targets, not targets"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_target_cannot_be_made_with_unknown_keys() -> None:
    data = dump_target(load_target("t4")) | {"extra": 1}
    with pytest.raises(ValidationError):
        Target.model_validate(data)
