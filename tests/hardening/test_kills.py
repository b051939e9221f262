# SPDX-License-Identifier: Apache-2.0
"""A sample of the disturbed builds; with STORMRT_KILLS=50 in the environment all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.seeds import SEED
from tests.pipeline.support import ROOT, environment

KILLS = int(os.environ.get("STORMRT_KILLS", "1"))
RESULT = ROOT / "benchmarks" / "results" / "kills.json"


@pytest.mark.slow
def test_disturbed_builds_are_recovered(tmp_path):
    print(f"STORMRT_TEST_SEED={SEED}")
    out = tmp_path / "kills.json"
    options = ["--kills", KILLS, "--stops", max(1, KILLS // 5), "--disks", max(1, KILLS // 6)]
    if KILLS < 10:
        options += ["--files", 4]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "tests.hardening.kills"),
            *map(str, [*options, "--seed", SEED, "--out", out]),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300 + 60 * KILLS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["recovered"] == len(found["kills"]) == KILLS
    assert {s["signal"] for s in found["signals"]} == {"SIGINT", "SIGTERM"}
    assert found["together"] == {"exit_codes": [0, 2]}
    assert len(found["no_space_for_a_file"]) >= 4


def test_the_committed_run_recovered_from_50_kills():
    found = json.loads(RESULT.read_text())
    assert found["recovered"] == len(found["kills"]) == 50
    assert len(found["no_space_for_a_file"]) >= 10
    assert len({round(entry["after_s"], 1) for entry in found["kills"]}) > 15, "not random moments"
