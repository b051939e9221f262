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
from types import FrameType

_SOON_S = 0.05


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Let Ctrl-C take effect when the context ends; a second one ends the process at once.

    Raises:
        KeyboardInterrupt: It came.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):  # signals belong to somebody else
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
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
