# SPDX-License-Identifier: Apache-2.0
"""The fuzzing by coverage finds what is planted; the committed run found nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.hardening.coverage_fuzz import READERS, RESULT, result_of
from tests.helpers.seeds import SEED
from tests.pipeline.support import ROOT, environment

needs_atheris = pytest.mark.skipif(
    find_spec("atheris") is None, reason="atheris has no wheel for this Python or CPU"
)

PROGRAM = """
import sys
from pathlib import Path

import atheris

from stormrt.errors import InputError
from tests.hardening.coverage_fuzz import fuzz_here

@atheris.instrument_func
def good(file):
    if len(file.read_bytes()) % 2:
        raise InputError("an odd number of bytes")

@atheris.instrument_func
def planted(file):
    content = file.read_bytes()
    if len(content) > 3 and content[0] == 75 and content[1] == 61 and content[2] == 49:
        raise ValueError("planted")

work, read = Path(sys.argv[1]), globals()[sys.argv[2]]
fuzz_here(read, [b"abcd"], work / "file", int(sys.argv[3]), int(sys.argv[4]), work)
"""


def fuzzed(tmp_path, name: str, seconds: int):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, (tmp_path, name, seconds, SEED % 2**31))],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # atheris tells errors on one, libFuzzer on the other
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    return result_of(name, done.returncode, done.stdout, tmp_path, tmp_path / "kept")


@needs_atheris
def test_an_error_behind_three_bytes_is_found_and_its_input_kept(tmp_path):
    found = fuzzed(tmp_path, "planted", 60)
    assert len(found["failures"]) == 1
    assert "ValueError: planted" in found["failures"][0]
    (kept,) = (tmp_path / "kept").glob("planted.crash-*")
    assert kept.read_bytes().startswith(b"K=1")


@needs_atheris
def test_a_reader_that_refuses_as_it_should_is_no_failure(tmp_path):
    found = fuzzed(tmp_path, "good", 1)
    assert found["failures"] == []
    assert found["executed"] > 100
    assert not (tmp_path / "kept").exists()


def test_the_committed_run_had_every_reader_and_no_failure():
    found = json.loads(RESULT.read_text())
    assert [one["reader"] for one in found["readers"]] == list(READERS)
    assert found["failures"] == 0
    for one in found["readers"]:
        assert one["executed"] > 1_000, one["reader"]
        assert one["covered"] >= one["covered_by_seeds"] > 0, one["reader"]
