# SPDX-License-Identifier: Apache-2.0
"""Digests and atomic writes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import stormrt
from stormrt.errors import InputError
from stormrt.locking import cannot_write

_CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_digest() -> str:
    """Digest of the package's own sources, so that a change of code re-runs cached stages."""
    root = Path(stormrt.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in _walk(root) if p.suffix in (".py", ".toml", ".cu", ".cpp", ".h")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _walk(folder: Path) -> Iterator[Path]:
    # Path.rglob does not follow the links that make up the package before Python 3.13.
    for base, _, names in os.walk(folder, followlinks=True, onerror=_raise):
        yield from (Path(base) / name for name in names)


def _raise(error: OSError) -> None:
    # os.walk would leave the folder out: a digest of less than all code.
    raise error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the same folder; on success it takes the final name at once.

    A process that is killed leaves at most a file named ``.<name>.*.tmp``, never half a file
    under the final name.

    Raises:
        InputError: The folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, *names: str) -> None:
    """Remove what killed processes have left of ``atomic_path`` for files of these names."""
    for name in names:
        for left in folder.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises InputError as ``atomic_path`` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def publish(source: Path, destination: Path) -> None:
    """Copy a file to its final name atomically; does nothing if the bytes are there already."""
    if destination.is_file() and sha256_file(destination) == sha256_file(source):
        return
    with atomic_path(destination) as temporary:
        shutil.copyfile(source, temporary)


def require_folder(path: Path) -> None:
    """Check that a path is a folder or can become one, without creating it.

    Raises:
        InputError: The path, or a parent of it, is a file.
    """
    for part in (path, *path.parents):
        if part.is_dir():
            return
        if part.exists():
            raise InputError(
                "the output folder is a file",
                where=str(part),
                expected="a folder, or a path that does not exist yet",
                fix="choose another --out",
            )
