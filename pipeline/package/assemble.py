# SPDX-License-Identifier: Apache-2.0
"""Make a package: read the bundle, make the host's files, write them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import stormrt
from stormrt.errors import InputError
from stormrt.locking import cannot_write, folder_lock
from stormrt.pipeline.artifacts import FileDigest
from stormrt.pipeline.files import atomic_path, require_folder, sha256_file, write_text
from stormrt.pipeline.package import deepstream, isaac_ros, plain, triton
from stormrt.pipeline.package.engine_files import EngineFiles
from stormrt.pipeline.package.model import EngineState, PackagedModel, read_model
from stormrt.pipeline.package.parts import Host, PackageFile
from stormrt.pipeline.package.readme import (
    deepstream_values,
    isaac_ros_values,
    plain_values,
    readme,
    triton_values,
)
from stormrt.pipeline.schema import Document, FolderFile

INDEX_NAME = "package.json"


class PackageIndex(Document):
    """``package.json``: what a package holds, and what it was made from."""

    stormrt_version: str
    host: Host
    model: str
    target: str
    bundle_manifest_sha256: str
    engine: EngineState
    notes: tuple[str, ...]
    """What must be done before the host can run it."""
    files: tuple[FolderFile, ...]


@dataclass(frozen=True, slots=True)
class Package:
    """A package that was written."""

    folder: Path
    index: PackageIndex


def package_bundle(bundle: Path, host: str, out: Path, *, labels: Path | None = None) -> Package:
    """Turn an output folder of ``stormrt build`` into what a host expects.

    Args:
        bundle: The output folder, with or without an engine.
        host: ``isaac-ros``, ``triton``, ``deepstream`` or ``plain``.
        out: A folder that is new, empty, or holds an earlier package.
        labels: Class names, one a line; None: those of the card beside the weights.

    Raises:
        InputError: The bundle is damaged, the host cannot take it, or the folder holds something
            else.
        EnvironmentMissingError: A package that the host's files are made with is missing.
    """
    known = next((h for h in get_args(Host) if h == host), None)
    if known is None:
        raise InputError(
            "no such host", where="--for", got=host, expected=", ".join(get_args(Host))
        )
    _check_folder(bundle, out)
    model = read_model(bundle, labels)
    files, shared = _files(known, model)
    with _staging(out) as folder:
        for file in files:
            _write(folder, file)
        index = _index(known, model, shared, folder, [f.path for f in files])
        write_text(folder / INDEX_NAME, index.to_json())
    return Package(out, index)


def _index(
    host: Host, model: PackagedModel, shared: EngineFiles, folder: Path, names: list[str]
) -> PackageIndex:
    return PackageIndex(
        stormrt_version=stormrt.__version__,
        host=host,
        model=model.name,
        target=model.target.id,
        bundle_manifest_sha256=model.manifest_sha256,
        engine=shared.state,
        notes=shared.notes,
        files=tuple(_digest(folder, name) for name in names),
    )


def _files(host: Host, model: PackagedModel) -> tuple[tuple[PackageFile, ...], EngineFiles]:
    if host == "deepstream":
        made = deepstream.files(model)
        values = deepstream_values(model, made)
        return (readme(host, model, made.shared, values), *made.files), made.shared
    if host == "isaac-ros":
        own, shared = isaac_ros.files(model)
        values = isaac_ros_values(model)
    elif host == "triton":
        own, shared = triton.files(model)
        values = triton_values(model)
    else:
        own, shared = plain.files(model)
        values = plain_values(model)
    return (readme(host, model, shared, values), *own), shared


def _check_folder(bundle: Path, out: Path) -> None:
    require_folder(out)
    if out.resolve() == bundle.resolve():
        raise InputError(
            "the package cannot be written into the bundle", where="--out", got=str(out)
        )
    if not out.is_dir():
        return
    known = {INDEX_NAME}
    if (out / INDEX_NAME).is_file():
        known |= {f.name for f in PackageIndex.read(out / INDEX_NAME).files}
    there = {str(p.relative_to(out)) for p in out.rglob("*") if not p.is_dir()}
    if there - known:
        # An engine that was built in an earlier package, say: of another graph it would be wrong,
        # and minutes of building should not vanish unasked.
        raise InputError(
            "the output folder holds files that are no package's",
            where=str(out),
            got=", ".join(sorted(there - known)[:5]),
            expected=f"a new or empty folder, or one with an earlier package ({INDEX_NAME})",
            fix="choose another --out, or remove them",
        )


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Yield a folder beside the output folder that takes its place when all is written.

    A process that is killed leaves the earlier package as it was, or none; never half of one.
    """
    final = Path(os.path.abspath(out))
    work = final.parent / f".{final.name}.stormrt"
    with folder_lock(work):
        fresh, old = work / "new", work / "old"
        try:
            for left in (fresh, old):
                shutil.rmtree(left, ignore_errors=True)
            fresh.mkdir()
            yield fresh
            if final.is_dir():
                final.rename(old)
            fresh.rename(final)
        except OSError as error:
            raise cannot_write(final, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _write(out: Path, file: PackageFile) -> None:
    path = out / file.path
    with atomic_path(path) as temporary:
        if isinstance(file.content, Path):
            shutil.copyfile(file.content, temporary)
        else:
            temporary.write_bytes(file.content)
    if file.is_program:
        path.chmod(0o755)


def _digest(out: Path, name: str) -> FileDigest:
    path = out / name
    return FileDigest(name, sha256_file(path), path.stat().st_size)
