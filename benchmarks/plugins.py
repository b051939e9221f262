# SPDX-License-Identifier: Apache-2.0
"""The plugin library's kernels on a GPU: right against FP64, and how near to the memory's speed.

    stormrt plugins build --arch 90 --out /tmp/lib
    STORMRT_PLUGIN_LIB=/tmp/lib/libstormrt_plugins.so python benchmarks/plugins.py

Parts (``--parts``): ``check`` compares every combination of sizes with FP64; ``scan`` and
``gather`` time single operators by CUDA-graph replay, medians of CUDA events, beside the same
operator in PyTorch; ``model`` times the whole VMamba-T. Roofline: the bytes of each operand once,
at the copy bandwidth that is measured in the same run. Writes benchmarks/results/plugins.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stormrt.plugins.native import LIBRARY_VARIABLE, DeviceTensor, library_path, load_library
from stormrt.plugins.selective_scan_2d import SPEC as SCAN
from stormrt.plugins.selective_scan_2d.torch_op import selective_scan_2d
from stormrt.plugins.spatial_unit_gather.torch_op import spatial_unit_gather

RESULTS = Path(__file__).parent / "results" / "plugins.json"
SIZES = ((7, 7), (14, 14), (28, 28), (56, 56), (128, 128), (1, 1), (1, 37), (31, 5), (56, 40),
         (10, 12))  # fmt: skip
CHANNELS = (8, 96, 100, 768)
BATCHES = (1, 3, 16)
STATES = (1, 2, 16)
REGIMES = {"init": (-4.0, 0.5), "mid": (-1.5, 1.0), "hot": (0.3, 1.8)}
"""Mean of dt's bias, and deviation of dt: step sizes of about 0.02, 0.3 and 1.2."""
TIMED = (
    (16, 96, 56, 56), (16, 192, 28, 28), (16, 384, 14, 14), (16, 768, 7, 7), (16, 96, 128, 128),
    (64, 96, 56, 56), (1, 96, 56, 56), (1, 192, 28, 28), (1, 384, 14, 14), (1, 768, 7, 7),
    (16, 96, 48, 48), (16, 192, 24, 24), (16, 384, 12, 12), (16, 768, 6, 6),
)  # fmt: skip
LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3}


def scan_inputs(
    batch: int, channels: int, height: int, width: int, state: int, regime: str,
    dtype: torch.dtype, generator: torch.Generator,
) -> list[Tensor]:  # fmt: skip
    """Random operands of one scan, in the order of its contract."""
    mean, deviation = REGIMES[regime]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", generator=generator)

    size = (height, width)
    maps = [
        normal(batch, channels, *size),
        normal(batch, 4 * channels, *size) * deviation,
        normal(batch, 4 * state, *size),
        normal(batch, 4 * state, *size),
    ]
    a = -(torch.rand(4 * channels, state, device="cuda", generator=generator) * 2.7 + 0.3)
    bias = normal(4 * channels) * 0.5 + mean
    return [*(m.to(dtype) for m in maps), a, normal(4 * channels), bias]


def launch(tensors: list[Tensor], y: Tensor, tactic: int = 0) -> None:
    """One call of the library's kernel into a given output."""
    load_library(library_path()).launch(
        SCAN,
        [DeviceTensor(t.data_ptr(), tuple(t.shape)) for t in tensors],
        [DeviceTensor(y.data_ptr(), tuple(y.shape))],
        io_dtype="float16" if y.dtype == torch.float16 else "float32",
        stream=torch.cuda.current_stream().cuda_stream,
        tactic=tactic,
    )


def capture(work: Callable[[], object], times: int = 1) -> torch.cuda.CUDAGraph:
    """Capture some repetitions of a call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            work()
    return graph


def median_ms(replay: Callable[[], None], calls: int, rounds: int = 9) -> float:
    """Median time of one call in ms, of ``rounds`` replays with ``calls`` calls each."""
    replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return statistics.median(times)


def relative_l2(y: Tensor, reference: Tensor) -> float:
    """Relative L2 in FP64; NaN where y has NaN."""
    return float((y.double() - reference).norm() / reference.norm())


def check(seconds: float, seed: int) -> dict[str, Any]:
    """Compare every combination with FP64, as long as there is time.

    Outputs are poisoned with NaN first; a second call must give the same bits, a permuted batch
    the permuted bits, and a graph's replay the same as both.
    """
    generator = torch.Generator("cuda").manual_seed(seed)
    combinations = list(itertools.product(STATES, SIZES, CHANNELS, BATCHES, REGIMES, LIMITS))
    # Small ones first, so that what time allows covers the most.
    combinations.sort(key=lambda c: c[0] * c[1][0] * c[1][1] * c[2] * c[3])
    worst = {str(dtype): 0.0 for dtype in LIMITS}
    failures: list[str] = []
    start, done = time.perf_counter(), 0
    for state, (height, width), channels, batch, regime, dtype in combinations:
        if time.perf_counter() - start > seconds:
            break
        name = f"N={state} {height}x{width} D={channels} B={batch} {regime} {dtype}"
        tensors = scan_inputs(batch, channels, height, width, state, regime, dtype, generator)
        # In FP64 the operator is PyTorch's own arithmetic, which tests hold to a sequential loop.
        reference = selective_scan_2d(*(t.double() for t in tensors))
        outputs = [torch.full_like(tensors[0], float("nan")) for _ in range(4)]
        launch(tensors, outputs[0])
        launch(tensors, outputs[1])
        error = relative_l2(outputs[0], reference)
        worst[str(dtype)] = max(worst[str(dtype)], error)
        if not error < LIMITS[dtype]:
            failures.append(f"{name}: relative L2 {error:.2e}")
        if not torch.equal(outputs[0], outputs[1]):
            failures.append(f"{name}: a second call differs")
        order = torch.randperm(batch, generator=generator, device="cuda")
        permuted = [*(t[order].contiguous() for t in tensors[:4]), *tensors[4:]]
        launch(permuted, outputs[2])
        if not torch.equal(outputs[2], outputs[0][order]):
            failures.append(f"{name}: a permuted batch differs")
        graph = capture(lambda t=tensors, y=outputs[3]: launch(t, y))
        outputs[3].fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        if not torch.equal(outputs[3], outputs[0]):
            failures.append(f"{name}: a graph's replay differs")
        done += 1
    print(f"check: {done} of {len(combinations)} combinations, {len(failures)} failures, {worst}")
    for failure in failures[:20]:
        print("  ", failure)
    return {
        "seed": seed,
        "combinations": len(combinations),
        "checked": done,
        "failures": failures,
        "worst_relative_l2": worst,
    }


def copy_bandwidth() -> float:
    """Bytes read and written a second by a large copy.

    By a kernel, not by ``copy_``: that is a memcpy, which gave 2.7 TB/s on an H200 of 4.8 TB/s.
    """
    source = torch.zeros(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    graph = capture(lambda: torch.neg(source, out=target), 4)
    return 2 * source.numel() * source.element_size() / (median_ms(graph.replay, 4) * 1e-3)


def time_scan(shape: tuple[int, int, int, int], bandwidth: float) -> dict[str, Any]:
    """Time one scan in FP16 with N = 1: default and best tactic, warm and cold, and PyTorch."""
    generator = torch.Generator("cuda").manual_seed(0)
    sets = [scan_inputs(*shape, 1, "mid", torch.float16, generator) for _ in range(2)]
    y = torch.empty_like(sets[0][0])
    size = sum(t.numel() * t.element_size() for t in (*sets[0], y))

    def timed(tactic: int, tensors: list[list[Tensor]]) -> float:
        turn, calls = itertools.cycle(tensors), max(20, len(tensors))
        return median_ms(capture(lambda: launch(next(turn), y, tactic), calls).replay, calls)

    count = load_library(library_path()).count_tactics(
        SCAN, [tuple(t.shape) for t in sets[0]], [tuple(y.shape)], io_dtype="float16"
    )
    by_tactic: dict[int, float] = {}
    for tactic in range(1, count + 1):
        try:
            by_tactic[tactic] = timed(tactic, sets)
        except Exception:  # noqa: BLE001  # a tactic that a shape does not take
            torch.cuda.synchronize()
            continue
    best = min(by_tactic, key=lambda t: by_tactic[t])
    # Cold: as many operand sets as leave none of them in a 50 MB cache.
    copies = [[t.clone() for t in sets[0]] for _ in range(max(2, int(120e6 / size) + 1))]
    library = os.environ.pop(LIBRARY_VARIABLE)
    pytorch_ms = median_ms(capture(lambda: selective_scan_2d(*sets[0])).replay, 1)
    os.environ[LIBRARY_VARIABLE] = library
    default_ms = timed(0, sets)
    row = {
        "shape": list(shape),
        "default_ms": round(default_ms, 5),
        "best_ms": round(by_tactic[best], 5),
        "best_tactic": best,
        "cold_ms": round(timed(best, copies), 5),
        "pytorch_ms": round(pytorch_ms, 4),
        "bytes": size,
        "roofline_ms": round(1e3 * size / bandwidth, 5),
        "roofline_share": round(1e3 * size / bandwidth / by_tactic[best], 3),
    }
    print(row)
    return row


def time_gather(bandwidth: float) -> dict[str, Any]:
    """The gather of keep = 0.75 at (16, 192, 56 x 56), FP16."""
    x = torch.randn(16, 192, 56, 56, device="cuda", dtype=torch.float16)
    lines = torch.stack([torch.randperm(56, device="cuda")[:48].sort().values for _ in range(16)])
    rows, cols = lines.int(), lines.flip(0).int().contiguous()
    library = os.environ.pop(LIBRARY_VARIABLE)
    expected = spatial_unit_gather(x, rows, cols)
    pytorch_ms = median_ms(capture(lambda: spatial_unit_gather(x, rows, cols), 10).replay, 10)
    os.environ[LIBRARY_VARIABLE] = library
    assert torch.equal(spatial_unit_gather(x, rows, cols), expected)
    ms = median_ms(capture(lambda: spatial_unit_gather(x, rows, cols), 20).replay, 20)
    moved = 2 * expected.numel() * expected.element_size()
    row = {
        "ms": round(ms, 5),
        "pytorch_ms": round(pytorch_ms, 5),
        "bytes_kept_read_and_written": moved,
        "share_of_copy_bandwidth": round(moved / (ms * 1e-3) / bandwidth, 3),
    }
    print("gather", row)
    return row


def time_model() -> list[dict[str, Any]]:
    """VMamba-T s1l8 at 224 in FP16 under a CUDA graph; the scan's share by leaving it out."""
    from stormrt.storm import build_vmamba, parse_plan

    rows = []
    torch.manual_seed(0)
    model = build_vmamba("vmamba_tiny_s1l8").eval()
    for storm in ("keep=1", "keep=0.75", "keep=0.5"):
        plan = parse_plan(storm, model.variant, 224, 224)
        network = model.with_plan(plan).to_fp16().cuda()
        for batch in (1, 16, 128):
            images = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.float16)
            with torch.inference_mode():
                graph = capture(lambda n=network, x=images: n(x))
                ms = median_ms(graph.replay, 1)
                profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                with profile:
                    graph.replay()
                    torch.cuda.synchronize()
            kernels = profile.key_averages()
            total = sum(k.self_device_time_total for k in kernels)
            scan = sum(k.self_device_time_total for k in kernels if "selectiveScan2D" in k.key)
            rows.append(
                {
                    "storm": storm,
                    "batch": batch,
                    "ms": round(ms, 4),
                    "scan_share_of_kernel_time": round(scan / total, 3) if total else None,
                }
            )
            print("model", rows[-1])
    return rows


def environment() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "library": load_library(library_path()).build_info,
    }


def main() -> None:
    """Run the parts asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("check", "scan", "gather", "model")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--check-seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    content: dict[str, Any] = {"schema_version": 1, "environment": environment()}
    bandwidth = copy_bandwidth()
    content["copy_gb_s"] = round(bandwidth / 1e9, 1)
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s")
    if "scan" in options.parts:
        content["scan_fp16_n1"] = [time_scan(shape, bandwidth) for shape in TIMED]
    if "gather" in options.parts:
        content["gather_fp16_16x192x56x56_to_48x48"] = time_gather(bandwidth)
    if "model" in options.parts:
        content["vmamba_tiny_s1l8_fp16_graph"] = time_model()
    if "check" in options.parts:
        content["check"] = check(options.check_seconds, options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
