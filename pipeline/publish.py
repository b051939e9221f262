# SPDX-License-Identifier: Apache-2.0
"""A build's results get their final names, the manifest last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import stormrt
from stormrt.pipeline.artifacts import CalibrationFile, FileDigest, GoldenData
from stormrt.pipeline.device.names import DEVICE_REPORT_NAME, PLUGIN_SOURCES_NAME, SCRIPT_NAME
from stormrt.pipeline.files import atomic_path, publish, sha256_file, write_text
from stormrt.pipeline.provenance import tools
from stormrt.pipeline.report import to_markdown
from stormrt.pipeline.schema import (
    ENGINE_NAME,
    FP16_ENGINE_NAME,
    FP16_MODEL_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    REFUSED_ENGINE_NAME,
    REPORT_JSON_NAME,
    REPORT_MD_NAME,
    TABLE_NAME,
    Fallback,
    Manifest,
    ValidationReport,
)
from stormrt.targets import dump_target

if TYPE_CHECKING:
    from stormrt.pipeline.build import BuildPlan, Built

_OPTIONAL = (
    ENGINE_NAME,
    REFUSED_ENGINE_NAME,
    FP16_MODEL_NAME,
    FP16_ENGINE_NAME,
    TABLE_NAME,
    PLUGIN_SOURCES_NAME,
)
"""What not every folder has."""
PUBLISHED = (
    *_OPTIONAL,
    MODEL_NAME,
    GOLDEN_NAME,
    SCRIPT_NAME,
    REPORT_JSON_NAME,
    REPORT_MD_NAME,
    MANIFEST_NAME,
)
"""All that a build may leave in its folder."""


def publish_results(
    plan: BuildPlan,
    golden: GoldenData,
    table: CalibrationFile | None,
    built: Built,
    beside: Built | None,
    report: ValidationReport,
) -> Manifest:
    """Put the results under their final names, the manifest last."""
    work, out, final = plan.work, plan.out, built.final
    assert final is not None  # every stage has run or was skipped
    refused = "; ".join(report.gate.reasons) if report.gate and not report.gate.passed else None
    published: dict[str, tuple[Path, FileDigest]] = {
        MODEL_NAME: (work / final.file.name, final.file),
        GOLDEN_NAME: (work / GOLDEN_NAME, golden.file),
    }
    if built.engine is not None:
        name = ENGINE_NAME if refused is None else REFUSED_ENGINE_NAME
        published[name] = (work / ENGINE_NAME, built.engine.file)
    if table is not None:
        published[TABLE_NAME] = (work / table.file.name, table.file)
    for made in _device_files(work, bool(final.plugins)):
        published[made.name] = (work / made.name, made)
    fallback = None
    if beside is not None and beside.final is not None:
        graph = beside.final.file
        published[FP16_MODEL_NAME] = (work / graph.name, graph)
        if beside.engine is not None:
            published[FP16_ENGINE_NAME] = (work / FP16_ENGINE_NAME, beside.engine.file)
        fallback = Fallback(model=_named(FP16_MODEL_NAME, graph), engine=beside.engine)
    # What an earlier build with other options left must not pass for this one's.
    if any(_differs(out / name, published[name][1]) for name in (MODEL_NAME, GOLDEN_NAME)):
        (out / DEVICE_REPORT_NAME).unlink(missing_ok=True)
    for name in _OPTIONAL:
        if name not in published or _differs(out / name, published[name][1]):
            (out / name).unlink(missing_ok=True)
    for name, (source, _) in published.items():
        publish(source, out / name)
    write_text(out / REPORT_JSON_NAME, report.to_json())
    write_text(out / REPORT_MD_NAME, to_markdown(report))
    manifest = Manifest(
        stormrt_version=stormrt.__version__,
        model=plan.spec,
        target=plan.target.id,
        recipe=dump_target(plan.target),  # type: ignore[arg-type]  # plain JSON values
        precision=plan.precision,
        runtime=plan.runtime.recipe.name,
        lowering=final.lowering,
        plugins=final.plugins,
        engine=built.engine if refused is None else None,
        fp16=fallback,
        refused=refused,
        files=tuple(_named(name, digest) for name, (_, digest) in published.items()),
        tools=tools(),
    )
    write_text(out / MANIFEST_NAME, manifest.to_json())
    return manifest


def _device_files(work: Path, has_plugins: bool) -> list[FileDigest]:
    """Write what a device builds with where stormrt is not installed."""
    from stormrt.pipeline.device.script import build_script, plugin_sources

    with atomic_path(work / SCRIPT_NAME) as temporary:
        temporary.write_text(build_script(), encoding="utf-8")
    names = [SCRIPT_NAME]
    if has_plugins:
        with atomic_path(work / PLUGIN_SOURCES_NAME) as temporary:
            temporary.write_bytes(plugin_sources())
        names.append(PLUGIN_SOURCES_NAME)
    paths = [work / name for name in names]
    return [FileDigest(p.name, sha256_file(p), p.stat().st_size) for p in paths]


def _named(name: str, file: FileDigest) -> FileDigest:
    return FileDigest(name, file.sha256, file.size_bytes)


def _differs(path: Path, file: FileDigest) -> bool:
    return path.is_file() and sha256_file(path) != file.sha256
