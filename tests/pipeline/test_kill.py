# SPDX-License-Identifier: Apache-2.0
"""A build that is killed, at any moment, and run again gives the bytes of one that never was.

What can go wrong: a record of a stage whose file is half written, a file under its final name that
is not whole, results of two builds mixed, a lock that outlives its process; and bytes that depend
on the folder, the process or its hash seed, for then no two builds could be compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stormrt.pipeline.device_build import read_bundle
from stormrt.pipeline.probe import installed_version
from tests.pipeline.support import CLASSES, SMALL, digest, environment, published

DRIVER = Path(__file__).with_name("kill_driver.py")
KILLED = -9

HAS_RTX = installed_version("tensorrt-rtx") is not None
"""Without it no engine can be built here: the builds are then for an Orin, and end in a bundle."""

pytestmark = pytest.mark.slow

MOMENTS: list[dict[str, object]] = [
    {"entering": "stormrt.pipeline.golden:make_golden"},
    {"writing": ".stormrt/golden.npz"},
    {"written": ".stormrt/golden.json"},
    {"entering": "stormrt.pipeline.export:export"},
    {"writing": ".stormrt/exported.onnx"},
    {"written": ".stormrt/export.json"},
    {"leaving": "stormrt.pipeline.precision:set_precision"},
    {"writing": ".stormrt/quantized.onnx"},
    {"writing": ".stormrt/precision.json"},
    {"written": ".stormrt/native.onnx"},
    {"entering": "stormrt.pipeline.engine:build_engine"},
    {"writing": ".stormrt/engine.plan"},
    {"written": ".stormrt/engine.json"},
    {"entering": "stormrt.pipeline.validate:validate_build"},
    {"writing": ".stormrt/validate.json"},
    {"writing": "out/model.onnx"},
    {"written": "out/model.onnx"},
    {"writing": "out/engine.plan"},
    {"written": "out/report.json"},
    {"writing": "out/manifest.json"},
]
"""In the order of a build: each run goes on where the one before was killed."""
if not HAS_RTX:
    MOMENTS = [m for m in MOMENTS if "engine" not in str(m)]


class Driver:
    """One process that builds into one folder, run by run."""

    def __init__(
        self, folder: Path, photographs: Path, runs: list[dict[str, object]], *, hash_seed: int
    ) -> None:
        self.out, self.runs = folder / "out", runs
        target = "t4" if HAS_RTX else "orin-nano-8g"
        options = ["--model", SMALL, "--target", target, "--classes", str(CLASSES)]
        options += ["--size", "32x48", "--storm", "keep=0.5,stage=2", "--photos", str(photographs)]
        arguments = ["build", *options, "--out", str(self.out)]
        folder.mkdir()
        for index, run in enumerate(runs):
            run.update(arguments=arguments, log=str(folder / f"{index}.log"))
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER)],
            env=environment(PYTHONHASHSEED=str(hash_seed)),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(runs))
        self.process.stdin.close()

    def statuses(self) -> list[int]:
        assert self.process.stdout is not None
        text = self.process.stdout.read()
        assert self.process.wait(timeout=120) == 0
        statuses = json.loads(text)
        assert len(statuses) == len(self.runs)
        for status, run in zip(statuses, self.runs, strict=True):
            assert status in (0, KILLED), f"{run}: {Path(str(run['log'])).read_text()}"
        return statuses


def digests(folder: Path) -> dict[str, str]:
    return {name: sha256 for name, (sha256, _) in published(folder).items()}


def test_a_killed_build_is_taken_up_again_and_gives_the_same_bytes(tmp_path, photographs, rng):
    delays = [{"delay_s": round(float(d), 2)} for d in rng.uniform(0.05, 4.0, size=2)]
    print(f"delays: {delays}")
    # Two at a time. One build is never disturbed; one is killed at each of the moments above, one
    # at random.
    staged = Driver(tmp_path / "staged", photographs, [*map(dict, MOMENTS), {}], hash_seed=1)
    undisturbed = Driver(tmp_path / "undisturbed", photographs, [{}], hash_seed=2)
    assert undisturbed.statuses() == [0]
    random = Driver(tmp_path / "a longer path", photographs, [*delays, {}], hash_seed=271828)
    assert random.statuses()[-1] == 0
    statuses = staged.statuses()
    missed = [m for m, status in zip(MOMENTS, statuses, strict=False) if status != KILLED]
    assert not missed, "these moments were never reached"
    assert statuses[-1] == 0

    expected = digests(undisturbed.out)
    wanted = {"golden.npz", "manifest.json", "model.onnx", "report.json", "report.md"}
    wanted |= {"build_engine.py"}
    assert set(expected) == wanted | ({"engine.plan"} if HAS_RTX else set())
    for folder in (staged.out, random.out):
        assert digests(folder) == expected
        read_bundle(folder)
        assert not [p.name for p in folder.rglob(".*.tmp")], "leftovers of killed runs"
        for name in ("exported.onnx", "quantized.onnx", "native.onnx"):
            work = (undisturbed.out / ".stormrt", folder / ".stormrt")
            assert digest(work[0] / name) == digest(work[1] / name)
