# SPDX-License-Identifier: Apache-2.0
"""A sample of the fuzzing; with STORMRT_FUZZ_CASES=10000 in the environment all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.seeds import SEED
from tests.pipeline.support import ROOT, environment

CASES = int(os.environ.get("STORMRT_FUZZ_CASES", "300"))
RESULT = ROOT / "benchmarks" / "results" / "fuzz.json"


@pytest.mark.slow
def test_no_reader_fails_hangs_or_takes_more_memory_than_allowed(tmp_path):
    print(f"STORMRT_TEST_SEED={SEED}")
    out = tmp_path / "fuzz.json"
    command = [sys.executable, "-W", "ignore", "-m", "tests.hardening.fuzz"]
    options = ["--cases", CASES, "--seed", SEED, "--keep", tmp_path / "kept", "--out", out]
    done = subprocess.run(
        [*command, *map(str, options)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=max(300, CASES),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["failures"] == 0
    assert found["cases"] >= CASES
    assert found["peak_mib"] <= found["memory_limit_mib"]
    for reader in found["readers"]:
        assert reader["read"] + reader["refused"] == reader["cases"] > 0


def test_a_reader_that_fails_hangs_or_dies_is_found_out(tmp_path, monkeypatch):
    from hypothesis import strategies as st

    from tests.hardening import fuzz
    from tests.hardening.readers import Reader

    monkeypatch.setattr(fuzz, "HANG_S", 0.5)

    def run(name, read):
        reader = Reader(name, st.just(b"x"), read, "file")
        return fuzz.run_reader(reader, 2, 0, tmp_path, tmp_path / "kept").failures

    assert run("good", lambda path: path.read_bytes()) == []
    assert "ZeroDivisionError" in run("bad", lambda _: 1 / 0)[0]
    assert "MemoryError" in run("large", lambda _: bytearray(4 << 30))[0]
    assert "ended with -9" in run("dead", lambda _: os.kill(os.getpid(), 9))[0]
    assert "hung" in run("slow", lambda _: __import__("time").sleep(60))[0]
    assert len(list((tmp_path / "kept").iterdir())) >= 4


def test_the_committed_run_had_10_000_cases_and_no_failure():
    found = json.loads(RESULT.read_text())
    assert found["cases"] == sum(r["cases"] for r in found["readers"]) >= 10_000
    assert found["failures"] == 0
    assert found["peak_mib"] <= 2048
