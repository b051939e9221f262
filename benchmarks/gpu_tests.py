# SPDX-License-Identifier: Apache-2.0
"""The tests marked ``gpu``, run on this machine's GPU, and what they were run with, as JSON.

    python -m benchmarks.gpu_tests

Everything after the options goes to pytest (``python -m benchmarks.gpu_tests tests/runtime``).
Writes benchmarks/results/gpu_tests.json: every test with its outcome and, unless it passed, why.
Exit code: pytest's. Needs a GPU; the runner's tests use pycuda where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.operator_bench.report import write
from benchmarks.plugins import driver_version
from stormrt.errors import EnvironmentMissingError
from stormrt.plugins.derive.cpp_header import source_digest
from stormrt.plugins.toolchain import find_toolchain
from tests.helpers.seeds import SEED

RESULTS = Path(__file__).parent / "results" / "gpu_tests.json"
SCHEMA_VERSION = 1
EXPECTED = "failed as expected"
OUTCOMES = ("passed", "failed", EXPECTED, "skipped")
PACKAGES = ("torch", "numpy", "pycuda", "triton", "pytest")


@dataclass
class Recorder:
    """A pytest plugin that keeps every test's outcome, one of ``OUTCOMES``."""

    tests: dict[str, dict[str, str]] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for set-up, call and tear-down of each test."""
        if report.when == "call" or not report.passed:
            self.add(report.nodeid, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest for each module."""
        # A module that is skipped or broken as a whole has no tests to report.
        if not report.passed:
            self.add(report.nodeid, report)

    def add(self, name: str, report: pytest.TestReport | pytest.CollectReport) -> None:
        """Keep it; what fails or is skipped at set-up or tear-down counts as that."""
        row = {"test": name, "outcome": str(report.outcome)}
        if hasattr(report, "wasxfail"):  # pytest counts it as skipped
            row |= {"outcome": EXPECTED, "why": report.wasxfail}
        elif report.skipped and isinstance(report.longrepr, tuple):
            row["why"] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            row["why"] = report.longreprtext[-2000:]
        self.tests[name] = row

    def counts(self) -> dict[str, int]:
        """How many tests had each outcome."""
        outcomes = [row["outcome"] for row in self.tests.values()]
        return {name: outcomes.count(name) for name in OUTCOMES}


def environment() -> dict[str, Any]:
    """What the tests are run with. ``sources`` is the digest of the plugins' sources."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    try:
        tools = find_toolchain()
        compilers = {"nvcc": tools.nvcc_version, "tensorrt_headers": tools.headers.version}
    except EnvironmentMissingError as error:
        compilers = {"missing": error.what}
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver_version(),
        "python": platform.python_version(),
        "versions": versions,
        "compilers": compilers,
        "sources": source_digest(),
        "seed": SEED,
    }


def main() -> int:
    """Run them and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options, rest = parser.parse_known_args()
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch has no CUDA GPU here")
    recorder = Recorder()
    code = pytest.main(["-m", "gpu", *(rest or ["tests"])], plugins=[recorder])
    content = {
        "schema_version": SCHEMA_VERSION,
        "command": " ".join(["python -m benchmarks.gpu_tests", *rest]),
        "environment": environment(),
        "counts": recorder.counts(),
        "tests": [recorder.tests[name] for name in sorted(recorder.tests)],
    }
    write(options.out, content)
    print(f"{options.out}: {content['counts']}")
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
