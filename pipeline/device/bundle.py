# SPDX-License-Identifier: Apache-2.0
"""A bundle, as far as the device phase reads it, without pydantic.

``stormrt build`` checks the manifest by its schema first; here a key that is missing or of another
type is one error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from stormrt.errors import InputError
from stormrt.pipeline.device.names import (
    ENGINE_NAME,
    FP16_ENGINE_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
)
from stormrt.pipeline.device.records import EngineArtifact, FileDigest, PluginUse
from stormrt.pipeline.device.report import ModelFacts
from stormrt.pipeline.files import sha256_file, write_text
from stormrt.reading import read_small


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an engine may be from PyTorch."""

    rel_l2: float
    cosine: float
    argmax_agreement: float


@dataclass(frozen=True, slots=True)
class BundleDevice:
    """The board's GPU."""

    gpu: str
    sm: int


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """How its engines are built."""

    workspace_mib: int
    builder_optimization_level: int


@dataclass(frozen=True, slots=True)
class BundleRuntime:
    """A package that builds engines for it."""

    name: str
    version: str
    lowering: str
    tolerance: dict[str, Tolerance]
    """By precision, where they differ from the board's."""


@dataclass(frozen=True, slots=True)
class BundleBoard:
    """The bundle's copy of its recipe (``board.Board``)."""

    id: str
    device: BundleDevice
    build: BundleOptions
    runtimes: tuple[BundleRuntime, ...]
    tolerance: dict[str, Tolerance]

    def runtime(self, name: str) -> BundleRuntime:
        """One of its runtimes.

        Raises:
            InputError: It has not that one.
        """
        for runtime in self.runtimes:
            if runtime.name == name:
                return runtime
        names = [runtime.name for runtime in self.runtimes]
        raise InputError(
            f"target {self.id} has no runtime {name!r}", got=name, expected=" or ".join(names)
        )

    def tolerance_for(self, precision: str, runtime: str) -> Tolerance:
        """The thresholds for a precision on a runtime."""
        own = self.runtime(runtime).tolerance
        return own[precision] if precision in own else self.tolerance[precision]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder that engines are built from."""

    folder: Path
    board: BundleBoard
    model: ModelFacts
    precision: str
    runtime: str
    lowering: str
    plugins: tuple[PluginUse, ...]
    has_fp16: bool
    """Whether an FP16 graph lies beside the INT8 one."""
    refused: str | None
    files: tuple[FileDigest, ...]
    text: str = field(repr=False)
    """The manifest's."""

    def digest(self, name: str) -> str:
        """SHA-256 of one of its files, as the manifest has it."""
        for entry in self.files:
            if entry.name == name:
                return entry.sha256
        raise InputError("the manifest does not name a file", where=str(self.folder), got=name)

    def verify(self) -> None:
        """Check every file but engines, which are built anew, against its digest.

        Raises:
            InputError: One is missing or has changed.
        """
        engines = (ENGINE_NAME, FP16_ENGINE_NAME)
        verify_files(self.folder, [f for f in self.files if f.name not in engines])


def read_manifest(folder: Path) -> Bundle:
    """Read a bundle's manifest.

    Raises:
        InputError: The folder is no bundle, or its manifest is damaged.
    """
    path = folder / MANIFEST_NAME
    try:
        text = read_small(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{MANIFEST_NAME} could not be read",
            where=str(path),
            got=getattr(error, "strerror", None) or str(error),
            fix="point at an output folder of `stormrt build`",
        ) from error
    try:
        return _bundle(folder, json.loads(text), text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{MANIFEST_NAME} is damaged or of another version",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            fix="copy the folder again, or build it again on the workstation",
        ) from error


def _bundle(folder: Path, raw: Any, text: str) -> Bundle:  # JSON, checked by what is read of it
    if raw["schema_version"] != 1:
        raise ValueError(f"schema_version {raw['schema_version']}")
    recipe, model = raw["recipe"], raw["model"]
    bundle = Bundle(
        folder=folder,
        board=BundleBoard(
            id=recipe["id"],
            device=BundleDevice(recipe["device"]["gpu"], int(recipe["device"]["sm"])),
            build=BundleOptions(
                int(recipe["build"]["workspace_mib"]),
                int(recipe["build"]["builder_optimization_level"]),
            ),
            runtimes=tuple(
                BundleRuntime(
                    r["name"], r["version"], r["lowering"], _tolerances(r.get("tolerance", {}))
                )
                for r in recipe["runtime"]
            ),
            tolerance=_tolerances(recipe["tolerance"]),
        ),
        model=ModelFacts(
            name=model["name"],
            height=int(model["height"]),
            width=int(model["width"]),
            batch=int(model["batch"]),
            dynamic_batch=bool(model["dynamic_batch"]),
            reductions=len(model["plan"]["reductions"]),
        ),
        precision=raw["precision"],
        runtime=raw["runtime"],
        lowering=raw["lowering"],
        plugins=tuple(PluginUse(p["name"], p["version"], p["count"]) for p in raw["plugins"]),
        has_fp16=raw.get("fp16") is not None,
        refused=raw.get("refused"),
        files=tuple(
            FileDigest(_text(f["name"]), _text(f["sha256"]), f["size_bytes"]) for f in raw["files"]
        ),
        text=text,
    )
    bundle.board.tolerance_for(bundle.precision, bundle.runtime)
    bundle.digest(GOLDEN_NAME)
    return bundle


def _text(value: Any) -> str:  # JSON
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a text should be")
    return value


def _tolerances(raw: Any) -> dict[str, Tolerance]:  # JSON
    return {
        precision: Tolerance(
            float(table["rel_l2"]), float(table["cosine"]), float(table["argmax_agreement"])
        )
        for precision, table in raw.items()
    }


def verify_files(folder: Path, files: Sequence[FileDigest]) -> None:
    """Check files of a bundle against their digests.

    Raises:
        InputError: One is missing, has changed, or is not in the folder by its name.
    """
    for entry in files:
        name = PurePosixPath(entry.name)
        if (
            name.is_absolute()
            or ".." in name.parts
            or not entry.name.isprintable()
            or any(len(part.encode()) > 255 for part in name.parts)
        ):
            raise InputError(
                "the manifest names a file outside its folder",
                where=str(folder / MANIFEST_NAME),
                got=repr(entry.name[:80]),
                fix="do not use this bundle",
            )
        path = folder / entry.name
        if not path.is_file():
            raise InputError("a file of the bundle is missing", where=str(path))
        found = sha256_file(path)
        if found != entry.sha256:
            raise InputError(
                "a file of the bundle has changed since it was made",
                where=str(path),
                got=f"SHA-256 {found}",
                expected=entry.sha256,
                fix="copy the folder again, or build it again on the workstation",
            )


def enter_engines(bundle: Bundle, runtime: str, engines: Sequence[EngineArtifact]) -> None:
    """Write the manifest again, with engines: ``engine.plan`` first, then FP16's beside INT8.

    Raises:
        InputError: It cannot be written.
    """
    raw: dict[str, Any] = json.loads(bundle.text)
    names = [engine.file.name for engine in engines]
    kept = [f for f in raw["files"] if f["name"] not in names]
    raw["engine"] = asdict(engines[0])
    if len(engines) > 1:
        raw["fp16"]["engine"] = asdict(engines[1])
    raw["files"] = [*kept, *(asdict(engine.file) for engine in engines)]
    raw["runtime"] = runtime
    text = json.dumps(raw, indent=2) + "\n"
    write_text(bundle.folder / MANIFEST_NAME, text)
