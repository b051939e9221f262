# SPDX-License-Identifier: Apache-2.0
"""Whether a plugin library loads: by itself, and through each TensorRT that is installed.

Each attempt is a process of its own. A library for another TensorRT may crash its host, two
TensorRTs do not share a process well, and a crash is an answer that the check must survive.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stormrt.errors import StormrtError
from stormrt.plugins.derive.trt import CreatorId, expected_creators
from stormrt.plugins.native import load_library

RUNTIMES: dict[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt_lean": ("tensorrt_lean", "tensorrt_lean_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx",),
}
"""Hosts with a plugin registry, and the Python modules through which each may be reached."""

_TIMEOUT_S = 120

Status = Literal["passed", "failed", "not run"]


@dataclass(frozen=True, slots=True)
class LoadCheck:
    """One attempt to load a library."""

    host: str
    """``the library itself``, or the package whose registry loaded it."""
    status: Status
    detail: str
    """The host's version, what is wrong, or why it was not run."""
    creators: tuple[CreatorId, ...] = ()
    """The creators of ours that were found."""


def check_library(path: Path) -> tuple[LoadCheck, ...]:
    """Load a library in every way that this machine allows.

    Args:
        path: ``libstormrt_plugins.so``.

    Returns:
        One result for the library itself, then one for each runtime, those not installed too.
    """
    return (
        _attempt("the library itself", "self", path),
        *(_check_runtime(runtime, modules, path) for runtime, modules in RUNTIMES.items()),
    )


def _check_runtime(runtime: str, modules: tuple[str, ...], path: Path) -> LoadCheck:
    module = next((m for m in modules if importlib.util.find_spec(m) is not None), None)
    if module is None:
        return LoadCheck(runtime, "not run", f"{runtime} is not installed")
    return _attempt(runtime, module, path)


def _attempt(host: str, probe: str, path: Path) -> LoadCheck:
    command = [sys.executable, "-m", "stormrt.plugins.check", probe, str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return LoadCheck(host, "failed", f"no answer within {_TIMEOUT_S} s")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return LoadCheck(host, "failed", f"the process died of {name} while loading it")
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return LoadCheck(host, "failed", last)
    creators = tuple(CreatorId(*c) for c in answer["creators"])
    return LoadCheck(host, answer["status"], answer["detail"], creators)


def _probe_self(path: Path) -> dict[str, object]:
    # Its operators are the expected ones: load_library compares their contracts.
    info = load_library(path).build_info
    creators = expected_creators()
    archs = " ".join(info["plugins"]["archs"])
    detail = f"for {archs}, headers of TensorRT {info['tensorrt_headers']}"
    return {"status": "passed", "detail": detail, "creators": creators}


def _probe_registry(module_name: str, path: Path) -> dict[str, object]:
    module: Any = importlib.import_module(module_name)
    registry = module.get_plugin_registry()
    version = f"version {module.__version__}"
    expected = set(expected_creators())

    def found() -> set[CreatorId]:
        present = registry.all_creators
        # Some of TensorRT's own creators fail when more is asked of them.
        return expected & {CreatorId(c.name, c.plugin_version, c.plugin_namespace) for c in present}

    before = found()
    handle = registry.load_library(str(path.resolve()))
    creators = sorted(found())
    if before:
        problem: str | None = "the plugins were registered before it was loaded"
    elif handle is None:
        problem = f"its registry refuses the library ({version})"
    elif set(creators) != expected:
        missing = ", ".join(c.name for c in sorted(expected - set(creators)))
        problem = f"it lacks {missing} ({version})"
    else:
        problem = None
    return {
        "status": "failed" if problem else "passed",
        "detail": problem or version,
        "creators": creators,
    }


def main(probe: str, path: Path) -> None:
    """Answer for one host, in one line of JSON; the caller's subprocess."""
    try:
        answer = _probe_self(path) if probe == "self" else _probe_registry(probe, path)
    except StormrtError as error:
        answer = {"status": "failed", "detail": error.got or error.what, "creators": []}
    except (ImportError, OSError) as error:
        # Installed, and does not load: for instance libcuda is missing.
        answer = {"status": "not run", "detail": f"it does not load: {error}", "creators": []}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
