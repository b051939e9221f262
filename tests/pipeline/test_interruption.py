# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C is held where it must be, and never lost."""

from __future__ import annotations

import signal
import time

import pytest

from stormrt.pipeline.cli.main import _termination
from stormrt.pipeline.interruption import held_interrupts, interrupts_are_kept


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_what_is_held_is_done_before_the_interrupt():
    done = []

    def work():
        with held_interrupts() as interruption:
            assert not interruption.requested
            ctrl_c()
            assert interruption.requested
            done.append("all of it")
        done.append("what follows")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_happens_without_one():
    with held_interrupts():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_one_would_end_the_process_at_once():
    def work():
        with held_interrupts():
            ctrl_c()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL

    with pytest.raises(KeyboardInterrupt):
        work()


def test_a_handler_of_the_application_stays(monkeypatch):
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(1))
    try:
        with held_interrupts():
            ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [1]


class Swallows:
    """Is interrupted in its destructor."""

    def __del__(self):
        ctrl_c()


def test_an_interrupt_that_a_destructor_swallows_comes_again(capfd):
    def work():
        with interrupts_are_kept():
            Swallows()
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert "Traceback" not in capfd.readouterr().err


def test_sigterm_ends_a_background_job_in_which_ctrl_c_is_ignored():
    def work():
        with _termination():
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
