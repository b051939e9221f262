# SPDX-License-Identifier: Apache-2.0
"""What the tests of the pipeline and of the command line share: small models and their graphs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from stormrt.pipeline.artifacts import ModelSpec
from stormrt.pipeline.precision import to_fp16
from stormrt.pipeline.rewrite.schedule import LOWER_NATIVE, LOWER_PLUGIN, run_passes
from stormrt.storm.plan import StormPlan
from stormrt.storm.variants import VARIANTS, Variant

ROOT = Path(__file__).resolve().parents[2]
STORMRT_WITH_SMALL_MODELS = Path(__file__).with_name("stormrt_with_small_models.py")

SMALL = "small_for_tests"
"""A VMamba v2 of five blocks."""
GATED = "gated_for_tests"
"""A vanilla VMamba of four blocks: gated, four states, patches that do not overlap."""
CLASSES = 7


def _variant(name: str, depths: tuple[int, int, int, int], *, vanilla: bool) -> Variant:
    return Variant(
        name=name,
        dims=(8, 16, 32, 64),
        depths=depths,
        ssm_ratio=2 if vanilla else 1,
        state=4 if vanilla else 1,
        mlp_ratio=0 if vanilla else 4,
        gated=vanilla,
        overlapping=not vanilla,
        conv_bias=vanilla,
        checkpoint=f"{name}.pth",
    )


@contextlib.contextmanager
def small_variants() -> Iterator[None]:
    """Within the context the small models are variants like the published ones."""
    before = dict(VARIANTS)
    VARIANTS[SMALL] = _variant(SMALL, (1, 1, 2, 1), vanilla=False)
    VARIANTS[GATED] = _variant(GATED, (1, 1, 1, 1), vanilla=True)
    try:
        yield
    finally:
        VARIANTS.clear()
        VARIANTS.update(before)


def model_spec(
    name: str = SMALL,
    height: int = 64,
    width: int = 48,
    *,
    batch: int = 1,
    dynamic: bool = False,
    plan: StormPlan | None = None,
    classes: int = CLASSES,
    checkpoint: str | None = None,
    seed: int = 0,
) -> ModelSpec:
    """A spec, by default of the dense small model with seeded weights."""
    sha256 = None if checkpoint is None else digest(Path(checkpoint))
    return ModelSpec(
        name, classes, checkpoint, sha256, seed, height, width, batch, dynamic, plan or StormPlan()
    )


@dataclass(frozen=True)
class Graphs:
    """One model's graphs at every stage. To change one, copy it first."""

    spec: ModelSpec
    exported: onnx.ModelProto
    fp16: onnx.ModelProto
    native: onnx.ModelProto
    native_fp16: onnx.ModelProto
    plugin_fp16: onnx.ModelProto


def make_graphs(spec: ModelSpec) -> Graphs:
    """Export a model and lower it in both precisions."""
    from stormrt.pipeline.export import export_model
    from stormrt.pipeline.model_source import build_model

    exported = export_model(build_model(spec), spec)
    fp16 = deepcopy(exported)
    to_fp16(fp16)
    lowered = []
    for source, passes in (
        (exported, LOWER_NATIVE),
        (fp16, LOWER_NATIVE),
        (fp16, LOWER_PLUGIN),
    ):
        model = deepcopy(source)
        run_passes(model, passes)
        lowered.append(model)
    return Graphs(spec, exported, fp16, *lowered)


def run_onnx(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of a graph in onnxruntime."""
    from stormrt.pipeline.comparison import open_session

    return open_session(model.SerializeToString(), "the graph under test").run(
        None, {"images": images}
    )[0]


def run_torch(spec: ModelSpec, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of FP32 PyTorch, one image at a time."""
    import torch

    from stormrt.pipeline.model_source import build_model

    model = build_model(spec)
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(i[None])).numpy() for i in images])


def relative(outputs: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Relative L2, written here a second time so that the pipeline's own is not its judge."""
    x, y = outputs.astype(np.float64), reference.astype(np.float64)
    return float(np.sqrt(((x - y) ** 2).sum()) / np.sqrt((y**2).sum()))


def ops(model: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    """Nodes of one operator."""
    return [node for node in model.graph.node if node.op_type == op_type]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def published(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file of an output folder outside its work folder: digest and time of change."""
    return {
        path.name: (digest(path), path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def environment(**extra: str) -> dict[str, str]:
    """The environment of a subprocess that finds this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}


def run_stormrt(*arguments: object, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with the small models known to it."""
    command = [sys.executable, str(STORMRT_WITH_SMALL_MODELS), *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def make_photographs(folder: Path) -> Path:
    """Four packaged photographs, reduced, so that decoding takes no time."""
    from PIL import Image

    from stormrt.pipeline.photographs import packaged_photographs

    folder.mkdir(parents=True)
    wanted = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    for path in packaged_photographs():
        if path.name in wanted:
            with Image.open(path) as image:
                small = image.convert("RGB").resize((120, 90))
            small.save(folder / f"{path.stem}.png")
    assert len(list(folder.iterdir())) == len(wanted)
    return folder
