# SPDX-License-Identifier: Apache-2.0
"""The lock of a folder that is written to."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stormrt.errors import InputError
from stormrt.locking import folder_lock
from tests.pipeline.support import environment


def test_a_second_holder_is_refused_until_the_first_has_left(tmp_path):
    with folder_lock(tmp_path / "w"):
        refused = pytest.raises(InputError, match="another stormrt build")
        with refused, folder_lock(tmp_path / "w"):
            pass
        with folder_lock(tmp_path / "other"):
            pass
    with folder_lock(tmp_path / "w"):
        pass


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from stormrt.locking import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment())
    assert done.returncode == -9
    with folder_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(InputError, match="could not write"), folder_lock(Path("/proc/stormrt")):
        pass


def test_who_waits_gets_it_when_the_other_has_left(tmp_path):
    got = threading.Event()

    def wait() -> None:
        with folder_lock(tmp_path, wait=True):
            got.set()

    waiting = threading.Thread(target=wait)
    with folder_lock(tmp_path):
        waiting.start()
        assert not got.wait(0.2)
    assert got.wait(10)
    waiting.join()
