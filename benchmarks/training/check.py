# SPDX-License-Identifier: Apache-2.0
"""The training kernels on a GPU: held to FP64, timed, and the whole step taken apart.

python -m benchmarks.training.check                     # right? (exit code 1 if not)
python -m benchmarks.training.check --tune              # times of other launch shapes
python -m benchmarks.training.check --profile vmamba_nano_scenes   # where a step's time goes
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training import operators
from benchmarks.training.data import Dataset, Split
from benchmarks.training.loop import Trainer
from benchmarks.training.recipes import RECIPES, recipe_of
from stormrt.plugins.selective_scan_2d.torch_op import selective_scan_2d
from stormrt.storm.variants import get_variant

_SHAPES = ((3, 32, 32, 48), (3, 4, 4, 384), (2, 2, 2, 384), (2, 7, 11, 40))
_LIMITS = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2}
"""Largest relative L2 error: FP32's rounding over 1024 steps, and BF16's of inputs and outputs."""
_TUNED = ((256, 32, 32, 48), (256, 8, 8, 192))
_CANDIDATES = {
    "scan_forward": ((32, 16, 1), (32, 16, 2), (64, 16, 2), (32, 32, 2)),
    "scan_backward": ((32, 16, 1), (32, 16, 2), (16, 16, 1), (64, 16, 4)),
    "conv_forward": ((64, 16, 2), (64, 16, 4), (32, 16, 2)),
    "conv_backward": ((32, 16, 2), (32, 16, 4), (64, 16, 4)),
}


def scan_operands(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> tuple[Tensor, ...]:
    """Random operands x, p, a, d, dt_bias of ``operators.scan``, steps of about 0.1."""
    batch, height, width, channels = shape
    x = torch.randn(batch, height, width, channels, device=device)
    p = torch.randn(batch, height, width, 4 * channels + 8, device=device)
    a = -(torch.rand(4 * channels, device=device) * 2.7 + 0.3)
    d = torch.randn(4 * channels, device=device) * 0.01
    bias = torch.randn(4 * channels, device=device) * 0.5 - 2.0
    return x.to(dtype), p.to(dtype), a, d, bias


def scan_in_double(x: Tensor, p: Tensor, a: Tensor, d: Tensor, dt_bias: Tensor) -> Tensor:
    """The project's operator on the same operands, in FP64."""
    x, p, a, d, dt_bias = (t.double() for t in (x, p, a, d, dt_bias))
    channels = x.shape[-1]
    dt, b, c = p.permute(0, 3, 1, 2).split([4 * channels, 4, 4], 1)
    y = selective_scan_2d(x.permute(0, 3, 1, 2), dt, b, c, a[:, None], d, dt_bias)
    return y.permute(0, 2, 3, 1)


def conv_in_double(x: Tensor, weight: Tensor) -> Tensor:
    """SiLU of PyTorch's convolution in FP64."""
    maps = x.double().permute(0, 3, 1, 2)
    y = F.conv2d(maps, weight.double(), padding=1, groups=x.shape[-1])
    return F.silu(y).permute(0, 2, 3, 1)


def errors(
    function: Callable[..., Tensor], exact: Callable[..., Tensor], operands: tuple[Tensor, ...]
) -> list[float]:
    """Relative L2 errors of the output and of every gradient."""
    results: list[list[Tensor]] = []
    for call in (function, exact):
        leaves = [t.detach().clone().requires_grad_() for t in operands]
        y = call(*leaves)
        torch.manual_seed(7)
        grad = torch.randn(y.shape, device=y.device)
        gradients = torch.autograd.grad(y, leaves, grad.to(y.dtype))
        results.append([y.detach(), *gradients])
    return [
        float((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30))
        for got, want in zip(*results, strict=True)
    ]


def check(device: str) -> bool:
    """Compare every shape and type with FP64, and print the errors."""
    good = True
    for shape, dtype in itertools.product(_SHAPES, _LIMITS):
        weight = torch.randn(shape[3], 1, 3, 3, device=device)
        scan = errors(operators.scan, scan_in_double, scan_operands(shape, dtype, device))
        x = torch.randn(shape, device=device).to(dtype)
        conv = errors(operators.conv_silu, conv_in_double, (x, weight))
        fine = all(e < _LIMITS[dtype] for e in (*scan, *conv))
        good &= fine
        text = " ".join(f"{e:.1e}" for e in scan) + " | " + " ".join(f"{e:.1e}" for e in conv)
        print(f"{'ok ' if fine else 'BAD'} {shape} {str(dtype)[6:]}: {text}", flush=True)
    return good


def milliseconds(call: Callable[[], object]) -> float:
    """Median time of a call, by CUDA events."""
    for _ in range(3):
        call()
    times: list[float] = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def tune() -> None:
    """Time every candidate launch of every kernel."""
    for shape in _TUNED:
        x, p, a, _, bias = scan_operands(shape, torch.bfloat16, "cuda")
        weight = torch.randn(9, shape[3], device="cuda")
        ops = torch.ops.stormrt_training
        _, states = ops.scan(x, p, a, bias, True)
        grad = torch.randn_like(x)
        calls = {
            "scan_forward": partial(ops.scan, x, p, a, bias, True),
            "scan_backward": partial(ops.scan_backward, grad, x, p, a, bias, states),
            "conv_forward": partial(ops.conv_silu, x, weight),
            "conv_backward": partial(ops.conv_silu_backward, grad, x, weight),
        }
        moved = {
            "scan_forward": 2 * p.numel() + 3 * x.numel(),
            "scan_backward": 3 * p.numel() + 4 * x.numel(),
            "conv_forward": 2 * x.numel(),
            "conv_backward": 5 * x.numel(),
        }
        for name, call in calls.items():
            chosen = operators.LAUNCHES[name]
            for launch in _CANDIDATES[name]:
                operators.LAUNCHES[name] = launch
                time = milliseconds(call)
                speed = moved[name] * 2 / time / 1e9
                mark = "*" if launch == chosen else " "
                print(
                    f"{mark} {name} {shape} {launch}: {time:.3f} ms, {speed:.2f} TB/s", flush=True
                )
            operators.LAUNCHES[name] = chosen


def profile(model: str, *, compiled: bool) -> None:
    """Print the kernels of a training step by the time that they take."""
    variant, recipe = get_variant(model), recipe_of(model)
    side, count = variant.image, 8 * recipe.batch
    split = Split(
        torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device="cuda"),
        torch.randint(0, variant.num_classes, (count,), device="cuda"),
    )
    data = Dataset(split, split, tuple(map(str, range(variant.num_classes))))
    trainer = Trainer(variant, data, recipe, compiled=compiled, graphs=False, say=print)
    trainer.prepare()
    trainer.profile()


def main() -> None:
    """Do what is asked for."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="time other launch shapes")
    parser.add_argument("--profile", choices=tuple(RECIPES), help="take a training step apart")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not operators.HAS_TRITON:
        print("this needs a CUDA GPU and Triton", file=sys.stderr)
        sys.exit(3)
    torch.manual_seed(0)
    if arguments.profile:
        profile(arguments.profile, compiled=arguments.compile)
    elif arguments.tune:
        tune()
    else:
        sys.exit(0 if check("cuda") else 1)


if __name__ == "__main__":
    main()
