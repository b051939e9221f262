# SPDX-License-Identifier: Apache-2.0
"""Train a demo model: images in an npz -> FP16 weights, and what they are and can.

    python -m benchmarks.train_demo_models --model vmamba_nano_scenes --data scenes128.npz \
        --seed 0 --out /tmp/out --seconds 280

Writes ``<model>.safetensors`` (averaged weights, rounded to FP16) and ``<model>.json`` (classes,
preprocessing, recipe, versions, a log of every epoch, top-1 on the whole test set); with several
seeds each in a folder ``seed<S>``. The top-1 is of the file's weights, read back by the project's
loader into the project's model, in FP32. The weights are always the last step's: the test images
choose nothing. On a GPU a run is fast with Triton and CUDA graphs; without a GPU it works on tiny
data, slowly. ``--seconds`` bounds the whole command: epochs are cut to what fits.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.data import Dataset, load
from benchmarks.training.loop import Options, Result, Trainer, accuracy
from benchmarks.training.operators import HAS_TRITON
from benchmarks.training.recipes import RECIPES, Recipe, recipe_of
from stormrt.errors import InputError, StormrtError
from stormrt.pipeline.preprocessing import MEAN, STD
from stormrt.storm.checkpoint import load_checkpoint
from stormrt.storm.variants import Variant, get_variant
from stormrt.storm.vmamba import VMamba

_STARTED = time.perf_counter()


def say(line: str) -> None:
    """Print a line with the time since the start, at once."""
    print(f"[{time.perf_counter() - _STARTED:6.1f} s] {line}", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help=", ".join(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="an npz of encoded images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one run for each")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seconds", type=float, help="bound of the whole command, in seconds")
    parser.add_argument("--batch", type=int, help="instead of the recipe's")
    parser.add_argument("--optimiser", choices=("muon", "adamw"), help="instead of the recipe's")
    parser.add_argument("--lr", type=float, help="instead of the recipe's")
    parser.add_argument("--drop-path", type=float, help="instead of the recipe's")
    parser.add_argument("--profile", action="store_true",
                        help="first say which kernels a step's time goes to")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True,
                        help="compile the blocks, on a GPU")  # fmt: skip
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True,
                        help="replay steps as a CUDA graph, on a GPU")  # fmt: skip
    return parser.parse_args()


def chosen_recipe(arguments: argparse.Namespace) -> Recipe:
    """The model's recipe, with what the command line changes.

    Raises:
        InputError: No such model, or a number out of range.
    """
    recipe = recipe_of(arguments.model)
    changes = {
        "epochs": arguments.epochs,
        "batch": arguments.batch,
        "optimiser": arguments.optimiser,
        "learning_rate": arguments.lr,
        "drop_path": arguments.drop_path,
    }
    recipe = dataclasses.replace(recipe, **{k: v for k, v in changes.items() if v is not None})
    for flag, value, good in (
        ("--epochs", recipe.epochs, recipe.epochs >= 1),
        ("--batch", recipe.batch, recipe.batch >= 1),
        ("--lr", recipe.learning_rate, recipe.learning_rate > 0),
        ("--drop-path", recipe.drop_path, 0 <= recipe.drop_path < 1),
        ("--seconds", arguments.seconds, arguments.seconds is None or arguments.seconds > 0),
    ):
        if not good:
            raise InputError("a number is out of range", where=flag, got=str(value))
    return recipe


def train(arguments: argparse.Namespace) -> None:
    """Train from every seed and write the results."""
    recipe = chosen_recipe(arguments)
    variant = get_variant(arguments.model)
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    cuda = device.type == "cuda"
    say(f"{variant.name} on {torch.cuda.get_device_name(device) if cuda else platform.machine()}, "
        f"PyTorch {torch.__version__}, {'with' if HAS_TRITON else 'without'} Triton")  # fmt: skip
    data = load(arguments.data, variant.image)
    say(f"{len(data.train.labels)} + {len(data.test.labels)} images, {len(data.classes)} classes")
    data = Dataset(data.train.to(device), data.test.to(device), data.classes)
    trainer = Trainer(
        variant, data, recipe, compiled=arguments.compile and cuda, graphs=arguments.graphs, say=say
    )
    rate = trainer.prepare()
    if arguments.profile and cuda:
        trainer.profile()
    for index, seed in enumerate(arguments.seed):
        seconds = None
        if arguments.seconds is not None:
            left = arguments.seconds - (time.perf_counter() - _STARTED)
            seconds = left / (len(arguments.seed) - index)
        result = trainer.run(Options(seed, seconds), rate)
        several = len(arguments.seed) > 1
        folder = arguments.out / f"seed{seed}" if several else arguments.out
        folder.mkdir(exist_ok=True)
        top1 = write(folder, variant, recipe, data, result, seed, arguments.data, device)
        last = result.log[-1]["test_top1"]
        say(f"seed {seed}: top-1 {top1:.4f} of {len(data.test.labels)} images by the FP16 file in "
            f"{folder} ({last:.4f} while training), {result.epochs} epochs in "
            f"{result.seconds:.1f} s")  # fmt: skip


def write(
    folder: Path,
    variant: Variant,
    recipe: Recipe,
    data: Dataset,
    result: Result,
    seed: int,
    source: Path,
    device: torch.device,
) -> float:
    """Write weights and description; returns the top-1 of the written weights."""
    from safetensors.torch import save_file

    path = folder / f"{variant.name}.safetensors"
    half = {name: weight.half().contiguous() for name, weight in result.weights.items()}
    save_file(half, path, metadata={"model": variant.name, "seed": str(seed)})
    model = load_checkpoint(VMamba(variant, len(data.classes)), path).freeze().to(device)
    torch.backends.cudnn.allow_tf32 = False  # what is reported is FP32's
    top1 = accuracy(model, data.test, batch=250)
    torch.backends.cudnn.allow_tf32 = True
    description: dict[str, Any] = {
        "model": variant.name,
        "classes": list(data.classes),
        "input": [3, variant.image, variant.image],
        "patch": variant.patch,
        "mean": list(MEAN),
        "std": list(STD),
        "parameters": sum(weight.numel() for weight in half.values()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "test_top1": top1,
        "test_images": len(data.test.labels),
        "seed": seed,
        "epochs": result.epochs,
        "complete": result.complete,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second),
        "command": " ".join(["python -m benchmarks.train_demo_models", *sys.argv[1:]]),
        "data_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
        "recipe": dataclasses.asdict(recipe),
        "log": result.log,
    }
    (folder / f"{variant.name}.json").write_text(json.dumps(description, indent=1) + "\n")
    return top1


def main() -> None:
    """Run, and say in one message what is wrong."""
    try:
        train(parse())
    except StormrtError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
