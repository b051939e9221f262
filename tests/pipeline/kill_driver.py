# SPDX-License-Identifier: Apache-2.0
"""Runs ``stormrt build`` again and again and kills it at the moments that it is told.

A program of its own for test_kill.py. It imports everything once and then forks a child, in a new
session, for each run: an import takes longer than a build of the small model.

It reads a JSON list of runs from stdin. A run has ``arguments`` (of ``stormrt``) and perhaps one of

- ``delay_s``: SIGKILL to the whole session after so many seconds;
- ``entering``: SIGKILL when this function ("module:name") is called;
- ``leaving``: SIGKILL when it has returned;
- ``writing``: SIGKILL when the file of this name ("folder/name") is half written;
- ``written``: SIGKILL when it has taken its final name.

It prints a JSON list with the exit status of each run, negative for a signal.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULES = (
    "onnxruntime.transformers.float16",
    "polygraphy.comparator",
    "stormrt.pipeline.cli.main",
    "stormrt.pipeline.export",
    "stormrt.pipeline.golden",
    "stormrt.pipeline.lower",
    "stormrt.pipeline.precision",
    "stormrt.pipeline.validate",
)


def kill_now() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_around(place: str, *, before: bool) -> None:
    module_name, name = place.split(":")
    module = importlib.import_module(module_name)
    real: Callable[..., Any] = getattr(module, name)

    def killed(*args: Any, **kwargs: Any) -> None:
        if not before:
            real(*args, **kwargs)
        kill_now()

    setattr(module, name, killed)


def kill_while_writing(ending: str, *, half: bool) -> None:
    real = os.replace

    def replace(source: Any, destination: Any) -> None:
        if not str(destination).endswith(ending):
            real(source, destination)
            return
        if half:
            path = Path(source)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            real(source, destination)
        kill_now()

    os.replace = replace


def child(run: dict[str, Any]) -> None:
    """One build in this process, which has just been forked."""
    from stormrt.pipeline.cli.main import main
    from tests.pipeline.support import small_variants

    os.setsid()
    log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "entering" in run:
        kill_around(run["entering"], before=True)
    if "leaving" in run:
        kill_around(run["leaving"], before=False)
    if "writing" in run:
        kill_while_writing(run["writing"], half=True)
    if "written" in run:
        kill_while_writing(run["written"], half=False)
    sys.argv = ["stormrt", *run["arguments"]]
    with small_variants():
        main()


def status_of(run: dict[str, Any]) -> int:
    process = os.fork()
    if process == 0:
        code = 70
        try:
            child(run)
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
        finally:
            sys.stderr.flush()
            os._exit(code)
    if "delay_s" in run:
        time.sleep(run["delay_s"])
        os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    print(json.dumps([status_of(run) for run in json.load(sys.stdin)]))
