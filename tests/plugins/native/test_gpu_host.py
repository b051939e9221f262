# SPDX-License-Identifier: Apache-2.0
"""The plugins on a GPU, driven as TensorRT would drive them, against float64 references.

No TensorRT is needed to run this, only the library. What can go wrong: a tactic computes another
result, or one that depends on the run or on what memory held; it writes past its output; it
cannot be captured in a CUDA graph; the tensors' order differs between SPEC and kernel.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

# Imported only where the packages above are: these import them.
from stormrt.pipeline.probe import cuda_driver  # noqa: E402
from stormrt.plugins.builder import BuildResult  # noqa: E402
from stormrt.plugins.selective_scan_2d import SPEC as SCAN  # noqa: E402
from stormrt.plugins.selective_scan_2d.reference import reference  # noqa: E402
from stormrt.plugins.spatial_unit_gather import SPEC as GATHER  # noqa: E402
from stormrt.plugins.spatial_unit_merge import SPEC as MERGE  # noqa: E402
from stormrt.plugins.spatial_unit_scatter import SPEC as SCATTER  # noqa: E402
from stormrt.plugins.spec import PluginSpec  # noqa: E402
from stormrt.plugins.toolchain import Toolchain  # noqa: E402
from tests.helpers.merges import merge_inputs, merge_reference  # noqa: E402
from tests.helpers.native import NATIVE, compile_cpp  # noqa: E402
from tests.helpers.scans import scan_inputs  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_driver().reason is not None, reason=str(cuda_driver().reason)),
]

DTYPES = {torch.float32: 0, torch.float16: 1, torch.int32: 3}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}
"""Relative L2: the order of sums; the rounding of the result, for inputs that are rounded too."""

# D, H, W, N
SCAN_SHAPES = [
    (6, 1, 1, 1),
    (6, 1, 37, 1),
    (6, 37, 1, 4),
    (5, 31, 5, 1),
    (3, 2, 3, 16),
    (96, 14, 14, 1),
    (3, 13, 29, 2),
]

Run = Callable[..., tuple[int, torch.Tensor | None]]


@pytest.fixture(scope="session")
def program(tools: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu_host") / "gpu_host"
    return compile_cpp(tools, NATIVE / "gpu_host.cpp", out, headers=tools.headers.folder)


@pytest.fixture
def run(program: Path, gpu_library: BuildResult, tmp_path: Path) -> Run:
    def run(spec: PluginSpec, inputs: list[torch.Tensor], shape: list[int], tactic: int):
        arguments = []
        for declared, tensor in zip(spec.inputs, inputs, strict=True):
            path = tmp_path / declared.name
            path.write_bytes(tensor.contiguous().numpy().tobytes())
            arguments.append(f"{DTYPES[tensor.dtype]}/{text(tensor.shape)}/{path}")
        out = tmp_path / "out"
        arguments.append(f"{DTYPES[inputs[0].dtype]}/{text(shape)}/{out}")
        command = [program, gpu_library.core, spec.name, tactic, len(inputs), *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        count = int(done.stdout.split()[1])
        if tactic < 0:
            return count, None
        array = np.frombuffer(out.read_bytes(), dtype=str(inputs[0].dtype).split(".")[1])
        return count, torch.from_numpy(array.copy()).view(*shape)

    return run


def text(shape) -> str:
    return ",".join(map(str, shape))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SCAN_SHAPES, ids=str)
def test_every_tactic_of_the_scan_agrees_with_the_reference(
    run: Run, shape: tuple[int, int, int, int], dtype: torch.dtype, rng: np.random.Generator
):
    named = scan_inputs(rng, shape, batch=2, dtype=dtype)
    inputs = [named[t.name] for t in SCAN.inputs]
    expected = reference(*inputs)
    count, _ = run(SCAN, inputs, list(expected.shape), -1)
    assert count >= 1
    # All of them, but no more than a few dozen processes.
    for tactic in sorted({0, 1, *range(1, count + 1, max(1, count // 8)), count}):
        _, y = run(SCAN, inputs, list(expected.shape), tactic)
        error = torch.linalg.norm(y.double() - expected) / torch.linalg.norm(expected)
        assert error < TOLERANCE[dtype], f"tactic {tactic}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_gather_keeps_the_lines_that_it_is_told(
    run: Run, dtype: torch.dtype, rng: np.random.Generator
):
    batch, channels, height, width, rows, cols = 3, 5, 11, 7, 6, 4
    x = torch.from_numpy(rng.normal(size=(batch, channels, height, width))).to(dtype)

    def lines(size: int, kept: int) -> torch.Tensor:
        chosen = [np.sort(rng.choice(size, kept, replace=False)) for _ in range(batch)]
        return torch.from_numpy(np.stack(chosen).astype(np.int32))

    r, c = lines(height, rows), lines(width, cols)
    _, y = run(GATHER, [x, r, c], [batch, channels, rows, cols], 0)
    for b in range(batch):
        assert torch.equal(y[b], x[b][:, r[b].long()][:, :, c[b].long()])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_scatter_restores_the_grid_from_the_lines_that_it_is_told(
    run: Run, dtype: torch.dtype, rng: np.random.Generator
):
    batch, channels, rows, cols, height, width = 3, 11, 6, 4, 11, 7
    x = torch.from_numpy(rng.normal(size=(batch, channels, rows, cols))).to(dtype)
    row_of, col_of = (
        torch.from_numpy(np.sort(rng.integers(kept, size=(batch, lines))).astype(np.int32))
        for kept, lines in ((rows, height), (cols, width))
    )
    _, y = run(SCATTER, [x, row_of, col_of], [batch, channels, height, width], 0)
    for b in range(batch):
        assert torch.equal(y[b], x[b][:, row_of[b].long()][:, :, col_of[b].long()])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_merge_agrees_with_float64(run: Run, dtype: torch.dtype, rng: np.random.Generator):
    inputs = merge_inputs(rng, (3, 11, 13, 9, 6, 4), str(dtype).removeprefix("torch."))
    expected = torch.from_numpy(merge_reference(inputs))
    _, y = run(MERGE, [torch.from_numpy(v) for v in inputs.values()], list(expected.shape), 0)
    error = torch.linalg.norm(y.double() - expected) / torch.linalg.norm(expected)
    assert error < TOLERANCE[dtype]
