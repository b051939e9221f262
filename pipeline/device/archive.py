# SPDX-License-Identifier: Apache-2.0
"""Unpack a bundle that came as an archive, trusting nothing in it.

Only files and folders with plain names come out, in a new folder beside the archive: no links, no
devices, no absolute names, no ``..``, and no more than a bundle can be.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from stormrt.errors import InputError
from stormrt.locking import cannot_write
from stormrt.pipeline.device.names import MANIFEST_NAME

MOST_FILES = 1000
MOST_BYTES = 4 << 30
"""Unpacked. A bundle of the largest VMamba, twice in ONNX, is below 1 GiB."""

_TAR_ENDINGS = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar")
_ENDINGS = (*_TAR_ENDINGS, ".zip")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size: int
    is_folder: bool


def is_archive(path: Path) -> bool:
    """Whether a path is an archive's, by its name."""
    return path.name.lower().endswith(_ENDINGS) and not path.is_dir()


def unpack(archive: Path) -> Path:
    """Unpack a bundle into a folder beside its archive: ``a.tar.gz`` into ``a/``.

    The folder appears when everything is in it, or not at all.

    Args:
        archive: ``.tar``, ``.tar.gz``, ``.tar.xz``, ``.tar.bz2``, ``.tgz`` or ``.zip``. The bundle
            may be its top level, or the one folder there.

    Returns:
        The folder of the bundle.

    Raises:
        InputError: It is missing, damaged, no bundle, or holds what it must not; the folder is
            there already or cannot be written.
    """
    folder = archive.with_name(_stem(archive.name))
    if not archive.is_file():
        raise InputError("there is no such archive", where=str(archive))
    if folder.exists():
        raise InputError(
            "the archive's folder is there already",
            where=str(folder),
            fix=f"build from it: stormrt build {folder}; or remove it to unpack again",
        )
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=archive.parent))
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        with _reading(archive):
            if archive.name.lower().endswith(".zip"):
                _unpack_zip(archive, scratch)
            else:
                _unpack_tar(archive, scratch)
        top = _bundle_in(scratch, archive)
        top.chmod(0o755)
        try:
            os.rename(top, folder)
        except OSError as error:
            raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _stem(name: str) -> str:
    ending = next(e for e in _ENDINGS if name.lower().endswith(e))
    return name[: -len(ending)] or "bundle"


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Every failure to read an archive as one error. Failures to write are told as such."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # tarfile, zipfile, zlib, lzma and bz2 raise many kinds
        raise InputError(
            "the archive is damaged or is none",
            where=str(archive),
            got=str(error) or type(error).__name__,
            expected=", ".join(_ENDINGS),
            fix="copy it again",
        ) from error


def _unpack_tar(archive: Path, out: Path) -> None:
    with tarfile.open(archive, "r:*") as tar:
        checked = _Checked(archive)
        for member in tar:
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise _unsafe(archive, member.name, "a link, a device or a sparse file")
            if checked.add(_Entry(member.name, member.size, member.isdir())):
                # What Python itself refuses, where it can: 3.10.12, 3.11.4 and later.
                if hasattr(tarfile, "data_filter"):
                    tarfile.data_filter(member, str(out))
                source = tar.extractfile(member)
                assert source is not None  # a regular file
                _copy(source, out, member.name, member.size, archive)


def _unpack_zip(archive: Path, out: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        checked = _Checked(archive)
        for info in packed.infolist():
            kind = info.external_attr >> 16 & 0o170000
            if kind not in (0, 0o100000, 0o040000):
                raise _unsafe(archive, info.filename, "a link or a device")
            if checked.add(_Entry(info.filename, info.file_size, info.is_dir())):
                with packed.open(info) as source:
                    _copy(source, out, info.filename, info.file_size, archive)


class _Checked:
    """What has been met so far in an archive."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._names: set[str] = set()
        self._count = self._bytes = 0

    def add(self, entry: _Entry) -> bool:
        """Check one entry; return whether it is a file."""
        path = PurePosixPath(entry.name)
        if not _is_plain(entry.name):
            raise _unsafe(self._archive, entry.name, "a name that leads out of its folder")
        self._count += 1
        self._bytes += entry.size
        if self._count > MOST_FILES or self._bytes > MOST_BYTES:
            raise InputError(
                "the archive holds more than a bundle can",
                where=str(self._archive),
                got=f"more than {MOST_FILES} entries"
                if self._count > MOST_FILES
                else f"more than {MOST_BYTES >> 20} MiB",
                fix="do not use this archive",
            )
        if entry.is_folder:
            return False
        if str(path) in self._names:
            raise _unsafe(self._archive, entry.name, "the same name twice")
        self._names.add(str(path))
        return True


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return not (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or ":" in name
        or any(ord(character) < 32 for character in name)
    )


def _copy(source: IO[bytes], out: Path, name: str, size: int, archive: Path) -> None:
    target = out.joinpath(*PurePosixPath(name).parts)
    left = size
    # Read first, so that a damaged archive is not taken for a full disk.
    chunk = source.read(min(_CHUNK, left))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    except OSError as error:
        raise cannot_write(target, error) from error
    with file:
        while chunk:
            try:
                file.write(chunk)
            except OSError as error:
                raise cannot_write(target, error) from error
            left -= len(chunk)
            chunk = source.read(min(_CHUNK, left)) if left else b""
    if left:
        raise InputError(
            "the archive ends too early", where=str(archive), got=name, fix="copy it again"
        )


def _bundle_in(folder: Path, archive: Path) -> Path:
    below = [path for path in folder.iterdir() if path.is_dir()]
    places = [folder, *below] if len(below) == 1 else [folder]
    for place in places:
        if (place / MANIFEST_NAME).is_file():
            return place
    raise InputError(
        "the archive holds no bundle",
        where=str(archive),
        expected=f"{MANIFEST_NAME} in it, or in its one folder",
        fix="pack an output folder of `stormrt build`: tar czf bundle.tar.gz bundle/",
    )


def _unsafe(archive: Path, name: str, what: str) -> InputError:
    return InputError(
        "the archive holds what no bundle has",
        where=str(archive),
        got=f"{name!r}: {what}",
        fix="do not use this archive",
    )
