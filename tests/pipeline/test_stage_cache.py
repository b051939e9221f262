# SPDX-License-Identifier: Apache-2.0
"""The stage cache: what is skipped, and what never is.

What can go wrong: a stale file that passes for a new one, a stage that is skipped after its output
was damaged, a record of a build that was killed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from stormrt.errors import InputError
from stormrt.pipeline import stage_cache
from stormrt.pipeline.artifacts import FileDigest
from stormrt.pipeline.onnx_file import digest_of
from stormrt.pipeline.stage_cache import StageCache


@dataclass(frozen=True, slots=True)
class Made:
    """An artefact of one file."""

    file: FileDigest
    note: str


class Stage:
    """A stage that writes one file and counts its runs."""

    def __init__(self, folder):
        self.folder, self.runs = folder, 0

    def __call__(self) -> Made:
        self.runs += 1
        path = self.folder / "made.bin"
        path.write_bytes(b"made")
        return Made(digest_of(path), "n")


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def run(cache: StageCache, stage: Stage, **facts: object) -> Made:
    """Load, or run: what the chain does."""
    key = cache.key("s", facts)
    found = cache.load("s", Made, key)
    return found if found is not None else cache.run("s", Made, key, stage, lambda m: (m.file,))


def test_a_stage_runs_once_for_the_same_inputs(tmp_path, stage):
    first = run(StageCache(tmp_path), stage, batch=1)
    again = run(StageCache(tmp_path), stage, batch=1)
    assert stage.runs == 1
    assert again == first
    assert again.file.name == "made.bin"


def test_a_stage_runs_again_for_other_inputs(tmp_path, stage):
    run(StageCache(tmp_path), stage, batch=1)
    run(StageCache(tmp_path), stage, batch=2)
    assert stage.runs == 2
    run(StageCache(tmp_path), stage, batch=1)
    assert stage.runs == 3, "only the last inputs are remembered: their files are gone"


def test_the_key_depends_on_the_stage_the_facts_and_the_code_but_not_on_their_order(
    tmp_path, monkeypatch
):
    cache = StageCache(tmp_path)
    key = cache.key("s", {"a": 1, "b": None})
    assert cache.key("s", {"b": None, "a": 1}) == key
    assert cache.key("t", {"a": 1, "b": None}) != key
    assert cache.key("s", {"a": 2, "b": None}) != key
    assert cache.key("s", {"a": 1}) != key
    monkeypatch.setattr(stage_cache, "code_digest", lambda: "another version of the code")
    assert cache.key("s", {"a": 1, "b": None}) != key


@pytest.mark.parametrize("content", [b"madd", b"made longer", b""])
def test_a_stage_whose_file_has_changed_runs_again(tmp_path, stage, content):
    run(StageCache(tmp_path), stage)
    (tmp_path / "made.bin").write_bytes(content)
    run(StageCache(tmp_path), stage)
    assert stage.runs == 2
    assert (tmp_path / "made.bin").read_bytes() == b"made"


def test_a_stage_whose_file_is_gone_runs_again(tmp_path, stage):
    run(StageCache(tmp_path), stage)
    (tmp_path / "made.bin").unlink()
    run(StageCache(tmp_path), stage)
    assert stage.runs == 2


def test_a_forced_stage_runs_whatever_its_record_says(tmp_path, stage):
    run(StageCache(tmp_path), stage)
    run(StageCache(tmp_path, frozenset({"s"})), stage)
    assert stage.runs == 2
    run(StageCache(tmp_path, frozenset({"another"})), stage)
    assert stage.runs == 2


def test_a_stage_without_a_record_runs(tmp_path, stage):
    run(StageCache(tmp_path), stage)
    (tmp_path / "s.json").unlink()
    run(StageCache(tmp_path), stage)
    assert stage.runs == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[]",
        lambda _: '{"key": 1}',
        lambda text: text.replace('"note"', '"other"'),
        lambda text: text.replace('"sha256"', '"md5"'),
        lambda text: text.replace('"n"', "[1]"),
    ],
)
def test_a_stage_with_a_damaged_record_runs(tmp_path, stage, damage):
    run(StageCache(tmp_path), stage)
    record = tmp_path / "s.json"
    record.write_text(damage(record.read_text()))
    run(StageCache(tmp_path), stage)
    assert stage.runs == 2
    run(StageCache(tmp_path), stage)
    assert stage.runs == 2, "the record is good again"


def test_a_stage_that_fails_leaves_no_record_of_files_that_it_may_have_replaced(tmp_path, stage):
    run(StageCache(tmp_path), stage)
    cache = StageCache(tmp_path)

    def fail() -> Made:
        (tmp_path / "made.bin").write_bytes(b"half")
        raise InputError("no")

    with pytest.raises(InputError):
        cache.run("s", Made, cache.key("s", {}), fail, lambda m: (m.file,))
    assert not (tmp_path / "s.json").exists()
    assert "s" not in cache.seconds


def test_the_record_tells_the_files_and_the_time(tmp_path, stage):
    cache = StageCache(tmp_path)
    run(cache, stage)
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["key"] == cache.key("s", {})
    assert record["files"][0]["name"] == "made.bin"
    assert record["files"][0]["size_bytes"] == 4
    assert record["seconds"] >= 0
    assert cache.seconds["s"] >= 0


def test_requiring_a_stage_that_has_run_gives_its_artefact(tmp_path, stage):
    made = run(StageCache(tmp_path), stage)
    cache = StageCache(tmp_path)
    assert cache.require("s", Made, cache.key("s", {})) == made


@pytest.mark.parametrize("facts", [{"batch": 2}, {}])
def test_requiring_a_stage_that_has_not_run_with_these_inputs_is_refused(tmp_path, stage, facts):
    if facts:
        run(StageCache(tmp_path), stage, batch=1)
    cache = StageCache(tmp_path)
    with pytest.raises(InputError, match="'s' has not been run with these options") as caught:
        cache.require("s", Made, cache.key("s", facts))
    assert "--from" in (caught.value.fix or "")
