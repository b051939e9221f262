# SPDX-License-Identifier: Apache-2.0
"""How a build tells how far it is, and is cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable

from stormrt.pipeline.engine_api import BuilderConfig, EngineApi
from stormrt.pipeline.interruption import Interruption

ProgressCallback = Callable[[str, int, int], None]
"""Called with a phase's name, the steps of it that are done, and how many it has."""


class Progress:
    """What the progress monitor does, without the library's base class."""

    def __init__(self, callback: ProgressCallback | None, interruption: Interruption) -> None:
        self._callback = callback
        self._interruption = interruption
        self._totals: dict[str, int] = {}
        self._lock = threading.Lock()  # the library may call from several threads
        self._failure: BaseException | None = None

    def start(self, phase: str, total: int) -> None:
        """Report that a phase begins."""
        self._totals[phase] = total
        self._report(phase, 0)

    def step(self, phase: str, step: int) -> bool:
        """Report a step; return whether the build shall go on."""
        self._report(phase, step + 1)
        return self._failure is None and not self._interruption.requested

    def finish(self, phase: str) -> None:
        """Report that a phase has ended."""
        # A phase may end before its last step, when there was less to do than was announced.
        if not self._interruption.requested:
            self._report(phase, self._totals.get(phase, 0))

    def _report(self, phase: str, done: int) -> None:
        with self._lock:
            if self._callback is None or self._failure is not None:
                return
            try:
                self._callback(phase, done, self._totals.get(phase, done))
            except BaseException as error:  # noqa: BLE001 - raised again after the build
                self._failure = error

    def raise_failure(self) -> None:
        """Raise again what the callback raised."""
        if self._failure is not None:
            raise self._failure


def attach_monitor(
    api: EngineApi,
    config: BuilderConfig,
    callback: ProgressCallback | None,
    interruption: Interruption,
) -> Progress:
    """Have a build report its progress, and end when it is interrupted.

    Args:
        api: The module that builds. One without progress monitors reports nothing.
        config: Of the build.
        callback: Who is told; None: nobody.
        interruption: What ends the build at its next step.

    Returns:
        What has been reported; ``raise_failure`` raises what the callback has raised.
    """
    progress = Progress(callback, interruption)
    if hasattr(config, "progress_monitor") and hasattr(api, "IProgressMonitor"):
        base = api.IProgressMonitor

        class Monitor(base):  # type: ignore[misc, valid-type]  # base known once loaded
            def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
                progress.start(phase_name, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return progress.step(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                progress.finish(phase_name)

        config.progress_monitor = Monitor()
    return progress
