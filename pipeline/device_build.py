# SPDX-License-Identifier: Apache-2.0
"""``stormrt build BUNDLE``: the device phase behind the manifest's schema.

The phase itself is ``pipeline.device``, which ``build_engine.py`` in every bundle shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import stormrt
from stormrt.pipeline.device.archive import is_archive, unpack
from stormrt.pipeline.device.bundle import read_manifest, verify_files
from stormrt.pipeline.device.names import PLUGIN_FOLDER as PLUGIN_FOLDER
from stormrt.pipeline.device.phase import (
    PhaseOptions,
    StageCallback,
    bundle_command,
    run_device_phase,
)
from stormrt.pipeline.device.plugins import library_digests as library_digests
from stormrt.pipeline.device.plugins import plugin_libraries as plugin_libraries
from stormrt.pipeline.device.report import DeviceReport
from stormrt.pipeline.engine_progress import ProgressCallback
from stormrt.pipeline.schema import MANIFEST_NAME, Manifest
from stormrt.runtime.device import Device
from stormrt.targets import RuntimeName, Target, parse_target


@dataclass(frozen=True, slots=True)
class DeviceOutcome:
    """What the device phase made."""

    folder: Path
    manifest: Manifest
    """Now with the engine."""
    report: DeviceReport


def read_bundle(folder: Path) -> tuple[Manifest, Target]:
    """Read a bundle's manifest and check every file in it against its digest.

    Raises:
        InputError: The folder is no bundle, or a file is missing or has changed.
    """
    manifest = Manifest.read(folder / MANIFEST_NAME)
    verify_files(folder, manifest.files)
    return manifest, parse_target(manifest.recipe, origin=str(folder / MANIFEST_NAME))


def build_bundle(
    bundle: Path,
    *,
    runtime: RuntimeName | None = None,
    on_progress: ProgressCallback | None = None,
    on_stage: StageCallback = lambda _text: None,
    device: int | Device = 0,
) -> DeviceOutcome:
    """Build the engines of a bundle on this machine; validate and time them where they can run.

    Args:
        bundle: An output folder of ``stormrt build``, or an archive of one, which is unpacked
            beside it.
        runtime: The runtime to build with; the bundle's own unless given. It must take the
            bundle's lowering.
        on_progress: Called as the builder goes on.
        on_stage: Called with what begins, in words.
        device: CUDA's number of the GPU.

    Raises:
        InputError: The bundle is damaged, or the runtime takes another lowering.
        EnvironmentMissingError: The runtime, the plugin library or the target's GPU is missing.
    """
    folder = unpack(bundle) if is_archive(bundle) else bundle
    # By the schema first: it says more of what is wrong, and refuses unknown keys.
    manifest = Manifest.read(folder / MANIFEST_NAME)
    parse_target(manifest.recipe, origin=str(folder / MANIFEST_NAME))
    options = PhaseOptions(
        made_by=f"stormrt build, stormrt {stormrt.__version__}",
        command=bundle_command("stormrt build", folder),
        runtime=runtime,
        on_progress=on_progress,
        on_stage=on_stage,
        device=device,
    )
    report = run_device_phase(read_manifest(folder), options)
    return DeviceOutcome(folder, Manifest.read(folder / MANIFEST_NAME), report)
