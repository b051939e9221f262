# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C where an exception must not come from nowhere.

Python raises KeyboardInterrupt in whatever it runs next. Inside a callback that a library makes
from C++ that ends the process without cleaning up; inside a destructor it is printed and forgotten.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SOON_S = 0.05


@dataclass(slots=True)
class Interruption:
    """Whether Ctrl-C has come, for work that can end early."""

    requested: bool = False


@contextmanager
def held_interrupts() -> Iterator[Interruption]:
    """Let Ctrl-C take effect when the context ends; a second one ends the process at once.

    Signals can be handled only in the main thread, and an application's own handler stays.

    Yields:
        What tells of it within the context.

    Raises:
        KeyboardInterrupt: It came.
    """
    held = Interruption()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):  # signals belong to somebody else
        yield held
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        held.requested = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGINT, note)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if held.requested:
            raise KeyboardInterrupt


@contextmanager
def interrupts_are_kept() -> Iterator[None]:
    """Within the context, a KeyboardInterrupt that a destructor swallows comes again."""
    before = sys.unraisablehook

    def again(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # The main thread handles signals, whichever sends them.
            threading.Timer(_SOON_S, signal.raise_signal, (signal.SIGINT,)).start()
        else:
            before(unraisable)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
