# SPDX-License-Identifier: Apache-2.0
"""A bundle, checked: everything that a package is made from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stormrt.errors import InputError
from stormrt.models.bundle import weights_path
from stormrt.models.card import read_card
from stormrt.pipeline.device.golden import read_golden
from stormrt.pipeline.device_build import PLUGIN_FOLDER, read_bundle
from stormrt.pipeline.files import sha256_file
from stormrt.pipeline.preprocessing import MEAN, RESIZE_RATIO, STD
from stormrt.pipeline.schema import ENGINE_NAME, GOLDEN_NAME, MANIFEST_NAME, MODEL_NAME, Manifest
from stormrt.plugins.builder import AUTOLOAD_NAME, CORE_NAME, code_names, read_manifest
from stormrt.targets import Target

EngineState = Literal["included", "not built", "of TensorRT-RTX"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a photograph becomes the model's input (``pipeline.photographs``)."""

    mean: tuple[float, float, float]
    """Of each channel, RGB in [0, 1]."""
    std: tuple[float, float, float]
    resize_ratio: float
    """The resized image's side over the crop's."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """What a bundle holds, as far as hosts ask for it."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str
    target: Target
    classes: tuple[str, ...]
    """Names of the outputs, in their order."""
    classes_are_named: bool
    """False: nothing names them, and they are numbered."""
    preprocessing: Preprocessing
    has_engine: bool
    plugin_files: tuple[Path, ...]
    """The core library and the autoload library; empty where the graph needs none, or none was
    built."""

    @property
    def name(self) -> str:
        """The variant's name, which is a file name in every host."""
        return self.manifest.model.name

    @property
    def batch(self) -> int:
        """Images a call; the most of them where the batch is dynamic."""
        return self.manifest.model.batch

    @property
    def input_dims(self) -> tuple[int, int, int]:
        """3, H, W."""
        return 3, self.manifest.model.height, self.manifest.model.width

    @property
    def needs_plugins(self) -> bool:
        """Whether the graph has custom operators."""
        return bool(self.manifest.plugins)

    def engine_state(self, runtimes: tuple[str, ...]) -> EngineState:
        """Whether the bundle has an engine that one of these runtimes runs."""
        engine = self.manifest.engine
        if engine is None:
            return "not built"
        return "included" if engine.runtime in runtimes else "of TensorRT-RTX"


def read_model(folder: Path, labels: Path | None = None) -> PackagedModel:
    """Read an output folder of ``stormrt build`` and check everything in it.

    Args:
        folder: The bundle.
        labels: Class names, one a line; None: those of the card beside the weights, if there is
            one.

    Raises:
        InputError: The folder is no bundle, a file of it is missing or has changed, or the class
            names are bad.
    """
    manifest, target = read_bundle(folder)
    _check_names(folder, manifest)
    _check_sizes(folder, manifest)
    has_engine = _check_engine(folder, manifest, target)
    classes, named = _class_names(manifest, labels)
    return PackagedModel(
        folder=folder,
        manifest=manifest,
        manifest_sha256=sha256_file(folder / MANIFEST_NAME),
        target=target,
        classes=classes,
        classes_are_named=named,
        preprocessing=Preprocessing(MEAN, STD, RESIZE_RATIO),
        has_engine=has_engine,
        plugin_files=_plugin_files(folder, manifest, target),
    )


def _check_names(folder: Path, manifest: Manifest) -> None:
    # Names of the manifest become names of files: they must not lead out of a folder.
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", manifest.model.name) is None:
        raise InputError(
            "the model's name cannot be a file's name",
            where=f"{folder / MANIFEST_NAME}: model.name",
            got=manifest.model.name,
        )
    listed = {f.name for f in manifest.files}
    for name in (MODEL_NAME, GOLDEN_NAME):
        if name not in listed:
            raise InputError(
                f"the bundle has no {name}",
                where=f"{folder / MANIFEST_NAME}: files",
                got=", ".join(sorted(listed)) or "no files",
                fix="build the bundle again",
            )


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    """The golden data are of the manifest's sizes: of any others a package would be wrong."""
    spec = manifest.model
    images, logits, _ = read_golden(folder / GOLDEN_NAME)
    expected = (3, spec.height, spec.width), (spec.num_classes,)
    found = images.shape[1:], logits.shape[1:]
    if found != expected or len(images) != len(logits) or 0 in images.shape or spec.batch < 1:
        raise InputError(
            "the golden data are of other sizes than the manifest's model",
            where=str(folder / GOLDEN_NAME),
            got=f"images {images.shape}, logits {logits.shape}",
            expected=f"images (n, 3, {spec.height}, {spec.width}), logits (n, {spec.num_classes}), "
            f"a batch of 1 or more (it is {spec.batch})",
            fix="build the bundle again",
        )


def _check_engine(folder: Path, manifest: Manifest, target: Target) -> bool:
    path, engine = folder / ENGINE_NAME, manifest.engine
    if engine is None:
        if path.exists():
            raise InputError(
                "the folder has an engine that its manifest does not know",
                where=str(path),
                fix=f"remove it, or build the engine with: stormrt build {folder}",
            )
        return False
    found = sha256_file(path) if path.is_file() else "no such file"
    if engine.file.name != ENGINE_NAME or found != engine.file.sha256:
        raise InputError(
            "the engine is not the one of the manifest",
            where=str(path),
            got=f"SHA-256 {found}",
            expected=engine.file.sha256,
            fix=f"copy the folder again, or build the engine with: stormrt build {folder}",
        )
    if engine.sm != target.device.sm:
        raise InputError(
            "the engine is for another GPU than the bundle's target",
            where=f"{folder / MANIFEST_NAME}: engine.sm",
            got=str(engine.sm),
            expected=str(target.device.sm),
        )
    return True


def _class_names(manifest: Manifest, labels: Path | None) -> tuple[tuple[str, ...], bool]:
    spec = manifest.model
    if labels is not None:
        try:
            lines = labels.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                "the class names could not be read", where=str(labels), got=str(error)
            ) from error
        names, where = tuple(line.strip() for line in lines if line.strip()), str(labels)
    else:
        card = None
        if spec.checkpoint is not None and spec.checkpoint_sha256 is not None:
            card = read_card(weights_path(spec.checkpoint), spec.checkpoint_sha256)
        if card is None:
            return tuple(f"class {i}" for i in range(spec.num_classes)), False
        names, where = card.classes, f"the card of {spec.checkpoint}"
    if len(names) != spec.num_classes:
        raise InputError(
            "there are not as many class names as outputs",
            where=where,
            got=f"{len(names)} names",
            expected=f"{spec.num_classes}",
            fix="give --labels FILE with one name a line, in the order of the outputs",
        )
    for name in names:
        if not name.isprintable():
            raise InputError("a class name is not printable", where=where, got=repr(name))
    return names, True


def _plugin_files(folder: Path, manifest: Manifest, target: Target) -> tuple[Path, ...]:
    plugins = folder / PLUGIN_FOLDER
    if not manifest.plugins or not plugins.is_dir():
        return ()
    library = read_manifest(plugins)
    if library is None:
        raise InputError(
            "the bundle's plugin library has no manifest that this version reads",
            where=str(plugins),
            fix=f"build it again: stormrt plugins build --target {target.id} --out {plugins}",
        )
    for entry in library.files:
        path = plugins / entry.name
        found = sha256_file(path) if path.is_file() else "no such file"
        if found != entry.sha256:
            raise InputError(
                "the bundle's plugin library has changed since it was built",
                where=str(path),
                got=f"SHA-256 {found}",
                expected=entry.sha256,
                fix=f"build it again: stormrt plugins build --target {target.id} --out {plugins}",
            )
    code = code_names([target.device.sm])[0]
    if code not in library.archs or library.machine != target.device.arch:
        raise InputError(
            "the bundle's plugin library is for another machine",
            where=str(plugins),
            got=f"{', '.join(library.archs)} on {library.machine}",
            expected=f"{code} on {target.device.arch}",
            fix=f"build it again: stormrt plugins build --target {target.id} --out {plugins}",
        )
    return plugins / CORE_NAME, plugins / AUTOLOAD_NAME
