# SPDX-License-Identifier: Apache-2.0
"""The lock of a folder that is written to, and the error where it cannot be written."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stormrt.errors import InputError


def cannot_write(path: Path, error: OSError) -> InputError:
    """The error for a file that could not be written."""
    return InputError(
        "could not write a file",
        where=str(path),
        got=error.strerror or str(error),
        fix="check the folder's permissions and the free space (df -h), or choose another --out",
    )


@contextmanager
def folder_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process; the lock goes with the process, however it ends.

    Args:
        folder: Made if it is not there; the file ``lock`` in it stays.
        wait: Until another process that holds it lets go, rather than raise.

    Raises:
        InputError: Another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise cannot_write(folder / "lock", error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise InputError(
                "another stormrt build is writing to this folder",
                where=str(folder),
                fix="wait for it, or choose another --out",
            ) from error
        except OSError as error:  # a file system without locks
            raise cannot_write(folder / "lock", error) from error
        yield
