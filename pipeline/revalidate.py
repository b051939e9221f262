# SPDX-License-Identifier: Apache-2.0
"""Validates an output folder again, from its manifest."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from stormrt.errors import InputError
from stormrt.models import weights_path
from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME, ModelSpec
from stormrt.pipeline.build import WORK_FOLDER, BuildPlan
from stormrt.pipeline.device_build import read_bundle
from stormrt.pipeline.files import sha256_file
from stormrt.pipeline.model_spec import check_spec
from stormrt.pipeline.photographs import find_photographs
from stormrt.pipeline.runtimes import choose_runtime
from stormrt.pipeline.schema import (
    ENGINE_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    ValidationReport,
)
from stormrt.storm.variants import get_variant


def revalidate(folder: Path, photographs: Path | None = None) -> ValidationReport:
    """Check a folder's files against their digests, then its graph and engine against PyTorch.

    Args:
        folder: An output folder of ``stormrt build``.
        photographs: A file or folder of other photographs than the golden ones.

    Raises:
        InputError: The folder is damaged, its checkpoint is gone or has changed, or its native
            graph is not there.
    """
    manifest, target = read_bundle(folder)
    spec = manifest.model
    check_spec(spec, str(folder / MANIFEST_NAME))
    if spec.checkpoint is not None:
        path = weights_path(spec.checkpoint)
        if not path.is_file() or sha256_file(path) != spec.checkpoint_sha256:
            raise InputError(
                "the checkpoint that the folder was built from is gone or has changed",
                where=str(path),
                expected=f"SHA-256 {spec.checkpoint_sha256}",
            )
    if manifest.lowering == "native":
        native = folder / MODEL_NAME
    else:
        native = folder / WORK_FOLDER / "native.onnx"
        if not native.is_file():
            raise InputError(
                "the native graph, which onnxruntime runs, is not in the folder",
                where=str(native),
                fix="validate where the bundle was made, or build it again",
            )
    _check_graph(native, spec)
    from stormrt.pipeline.golden import make_golden
    from stormrt.pipeline.validate import validate_build

    plan = BuildPlan(
        spec=spec,
        target=target,
        precision=manifest.precision,
        runtime=choose_runtime(target, target.runtime(manifest.runtime).name),
        photographs=(),
        out=folder,
    )
    with tempfile.TemporaryDirectory(prefix="stormrt-") as temporary:
        work = Path(temporary)
        shutil.copyfile(native, work / "native.onnx")
        if manifest.engine is not None:
            shutil.copyfile(folder / ENGINE_NAME, work / ENGINE_NAME)
        if photographs is None:
            shutil.copyfile(folder / GOLDEN_NAME, work / GOLDEN_NAME)
        else:
            make_golden(spec, find_photographs(photographs), work / GOLDEN_NAME)
        return validate_build(plan, work, manifest.engine)


def _check_graph(native: Path, spec: ModelSpec) -> None:
    """Refuse a manifest that tells of another model than its graph is: it was edited.

    Blocks are compared by what PyTorch calls their outputs, which the graph does, too.
    """
    from stormrt.pipeline.onnx_file import load_onnx
    from stormrt.pipeline.rewrite.name_by_module import boundary_values
    from stormrt.pipeline.rewrite.values import value_types

    graph = load_onnx(native).graph
    types = value_types(graph)
    batch: int | str = "batch" if spec.dynamic_batch else spec.batch
    expected: dict[str, tuple[int | str, ...]] = {
        INPUT_NAME: (batch, 3, spec.height, spec.width),
        OUTPUT_NAME: (batch, spec.num_classes),
    }
    variant = get_variant(spec.name)
    blocks = sum(".blocks." in name for name in boundary_values(graph))
    first = next((types[n].shape for n in boundary_values(graph) if n in types), None)
    found = {name: types[name].shape for name in expected if name in types}
    alike = (
        {n: s and s[1:] for n, s in found.items()} == {n: s[1:] for n, s in expected.items()}
        and (spec.dynamic_batch or found[INPUT_NAME] == expected[INPUT_NAME])
        and blocks == sum(variant.depths)
        and (first is None or variant.dims[0] in first)
    )
    if not alike:
        raise InputError(
            "the graph is of another model than the manifest says",
            where=str(native),
            got=f"{blocks} blocks; " + ", ".join(f"{n} {list(s or ())}" for n, s in found.items()),
            expected=f"{spec.name}: {sum(variant.depths)} blocks; "
            + ", ".join(f"{n} {list(s)}" for n, s in expected.items()),
            fix="build the bundle again",
        )
