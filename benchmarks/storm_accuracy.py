# SPDX-License-Identifier: Apache-2.0
"""What token reduction costs in accuracy: every method, place and share, on whole test sets.

    python -m benchmarks.storm_accuracy \
        --run vmamba_nano_scenes scenes128.npz seed0/vmamba_nano_scenes.safetensors \
        --run vmamba_nano_cifar10 cifar10.npz seed0/vmamba_nano_cifar10.safetensors

Parts (``--parts``): ``accuracy`` is the table of top-1 and FLOPs; of several checkpoints of a
model the first has all rows, the others the headline rows. ``search`` is the same for what the
planner could do instead. ``speed`` times VMamba-T at 224 and 512, ``latency`` rows of the table,
with the plugins' kernels, in CUDA graphs, FP16; both need a GPU and STORMRT_PLUGIN_LIB, else they
are not run. On a GPU accuracy is FP16's, on a CPU FP32's.

Writes benchmarks/results/storm_accuracy.json, every few rows, and goes on where it was cut off if
machine, library and checkpoint are the same. ``random:SEED`` for a checkpoint tries the script.
``benchmarks/render_storm.py`` makes tables and plots of the results.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.operator_bench.report import write
from benchmarks.plugins import driver_version
from benchmarks.storm_eval.cases import Case, Network, cases
from benchmarks.storm_eval.data import load_test_set
from benchmarks.storm_eval.evaluate import Evaluator, batch_size
from benchmarks.storm_eval.latency import captured, take_apart, time_together
from stormrt.errors import InputError, StormrtError
from stormrt.plugins.native import LIBRARY_VARIABLE, library_path, load_library
from stormrt.storm.checkpoint import load_checkpoint
from stormrt.storm.flops import count_flops
from stormrt.storm.plan import StormPlan, keep_plan
from stormrt.storm.planner import plan_for_flops
from stormrt.storm.variants import Variant, get_variant
from stormrt.storm.vmamba import VMamba, build_vmamba

RESULTS = Path(__file__).parent / "results" / "storm_accuracy.json"
SCHEMA_VERSION = 1
PARTS = ("accuracy", "search", "speed", "latency")
BATCHES = (1, 64)
TIMED = re.compile(
    r"(dense|planner|smaller input:bicubic) (dense|s\db\d|flops=[\d.]+)"
    r"|(tokens:step_size|matching|average|bilinear|scan only|lines:uniform:drop"
    r"|lines:dissimilarity:(drop|merge)|windows:dissimilarity:merge) s\db\d"
)
"""Rows that are timed, by method and where: others launch the same kernels, but for the scores."""
SPEED_MODEL, SPEED_SIZES, SPEED_KEEPS = "vmamba_tiny_s1l8", (224, 512), (0.75, 0.5)
_WRITE_EVERY_S = 3.0
_STARTED = time.perf_counter()

Row = dict[str, Any]  # Any: JSON


def say(line: str) -> None:
    """Print a line with the time since the start, at once."""
    print(f"[{time.perf_counter() - _STARTED:6.1f} s] {line}", flush=True)


@dataclass(frozen=True)
class Run:
    """A model, its test set, and its checkpoints."""

    variant: Variant
    data: Path
    checkpoints: tuple[str, ...]


class Results:
    """Rows by name, in a file that is written every few seconds.

    Args:
        path: The file.
        environment: What the rows depend on; rows of another are dropped.
    """

    LISTS = ("accuracy", "latency", "latency_baselines")

    def __init__(self, path: Path, environment: Row) -> None:
        self.path = path
        self.content: Row = {"schema_version": SCHEMA_VERSION, "environment": environment}
        if path.is_file():
            old = json.loads(path.read_text())
            if all(old.get(key) == value for key, value in self.content.items()):
                self.content = old
            else:
                say(f"{path}: of another machine or library; its rows are dropped")
        for name in self.LISTS:
            self.content.setdefault(name, [])
        self._plans = {
            name: {_key(row): row.get("plan") for row in self.content[name]} for name in self.LISTS
        }
        self._written = 0.0

    def has(self, name: str, row: Row) -> bool:
        """Whether a list has a row of the same name and plan."""
        return self._plans[name].get(_key(row), _ABSENT) == row.get("plan")

    def add(self, name: str, row: Row) -> None:
        """Append a row, and write if the last time is some seconds ago.

        One of the same name is replaced: the planner has another answer than it had then.
        """
        key = _key(row)
        if key in self._plans[name]:
            self.content[name] = [old for old in self.content[name] if _key(old) != key]
        self.content[name].append(row)
        self._plans[name][key] = row.get("plan")
        if time.perf_counter() - self._written > _WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write all rows: to a new file first, so that a kill leaves the old one whole."""
        new = self.path.with_suffix(".new")
        write(new, self.content)
        os.replace(new, self.path)
        self._written = time.perf_counter()


_ABSENT = "absent"  # no plan, and not the None of a row without one
_NAMES = ("model", "checkpoint", "images", "size", "batch", "method", "where", "keep")


def _key(row: Row) -> str:
    return json.dumps([row.get(name) for name in _NAMES])


def parse() -> argparse.Namespace:
    """The command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs="+", action="append", default=[],
                        metavar=("MODEL DATA", "CHECKPOINT"), help="a model, its test set, and "
                        "checkpoints: the first for all rows, more for the headline")  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=int, help="at most so many images")
    parser.add_argument("--only", help="rows whose 'method where' this pattern finds")
    parser.add_argument("--batch", type=int, help="images a batch, for accuracy")
    parser.add_argument("--seconds", type=float, default=float("inf"),
                        help="stop before this, with what there is")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def runs_of(arguments: argparse.Namespace) -> list[Run]:
    """The runs asked for.

    Raises:
        InputError: A run lacks its data or checkpoint, or names an unknown model.
    """
    runs = []
    for words in arguments.run:
        if len(words) < 3:
            raise InputError(
                "a run needs more", where="--run", got=" ".join(words),
                expected="MODEL DATA CHECKPOINT [CHECKPOINT ...]",
            )  # fmt: skip
        runs.append(Run(get_variant(words[0]), Path(words[1]), tuple(words[2:])))
    return runs


def environment(device: torch.device) -> Row:
    """What rows depend on."""
    cuda = device.type == "cuda"
    library = cuda and bool(os.environ.get(LIBRARY_VARIABLE))
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "precision": "fp16" if cuda else "fp32",
        "driver": driver_version() if cuda else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "library": load_library(library_path()).build_info if library else None,
    }


def open_model(variant: Variant, checkpoint: str, device: torch.device) -> tuple[VMamba, Row]:
    """A model with a checkpoint's weights, ready to run; and what the checkpoint is."""
    model = VMamba(variant, variant.num_classes)
    if checkpoint.startswith("random:"):
        torch.manual_seed(int(checkpoint.removeprefix("random:")))
        model = VMamba(variant, variant.num_classes)
        known: Row = {"checkpoint": checkpoint, "seed": None}
    else:
        path = Path(checkpoint)
        load_checkpoint(model, path)
        known = {"checkpoint": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
        known["seed"] = training_seed(path)
    if device.type == "cuda":
        return model.to_fp16().to(device), known
    return model.freeze().to(device), known


def training_seed(checkpoint: Path) -> int | None:
    """What train_demo_models.py says of its weights, in the file itself; None: not its weights."""
    if checkpoint.suffix != ".safetensors":
        return None
    with safe_open(checkpoint, framework="np") as weights:
        seed = (weights.metadata() or {}).get("seed")
    return None if seed is None else int(seed)


def accuracy_rows(
    run: Run, arguments: argparse.Namespace, results: Results, deadline: float, *, search: bool
) -> None:
    """Top-1 of every row of a model, for every checkpoint: of the table, or of the search."""
    device = torch.device(arguments.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    data = load_test_set(run.data, run.variant.image, device, dtype, arguments.limit)
    say(f"{run.variant.name}: {len(data.labels)} images decoded")
    dense = count_flops(run.variant, run.variant.image, run.variant.image).total
    for number, checkpoint in enumerate(run.checkpoints[:1] if search else run.checkpoints):
        model, known = open_model(run.variant, checkpoint, device)
        evaluator = Evaluator(model, data, arguments.batch or batch_size(model))

        def row_of(case: Case, known: Row = known) -> Row:
            return {
                "model": run.variant.name, **known, "images": len(data.labels),
                "method": case.method, "where": case.where, "keep": case.keep,
                "grid": case.size, "flops": case.flops, "flops_share": round(case.flops / dense, 5),
                "plan": case.plan.describe() if case.plan else None,
            }  # fmt: skip

        wanted = [
            case
            for case in cases(run.variant)
            if case.search == search
            and (number == 0 or case.headline)
            and chosen(case, arguments.only)
            and not results.has("accuracy", row_of(case))
        ]
        # Rows of one place follow each other; the headline stays first and the search last.
        wanted.sort(
            key=lambda c: (not c.headline, c.search, c.place is not None, c.place or (0, 0))
        )
        began = time.perf_counter()
        done = 0
        for case, top1 in evaluator(_until(deadline, wanted)):
            results.add("accuracy", {**row_of(case), "top1": round(top1, 6)})
            done += 1
            if case.method == "dense":
                say(f"{run.variant.name}, {checkpoint}: dense top-1 {top1:.4f}")
        results.write()
        took = time.perf_counter() - began
        say(f"{run.variant.name}, {checkpoint}: {done} of {len(wanted)} rows in {took:.1f} s")


def chosen(case: Case, pattern: str | None) -> bool:
    """Whether a row was asked for."""
    return pattern is None or re.search(pattern, f"{case.method} {case.where}") is not None


def _until(deadline: float, rows: Sequence[Case]) -> Iterator[Case]:
    for row in rows:
        if time.perf_counter() > deadline:
            return
        yield row


def latency_rows(
    run: Run, arguments: argparse.Namespace, results: Results, deadline: float
) -> None:
    """Times of a model's rows, those of one place and share in turns with the dense model."""
    device = torch.device(arguments.device)
    model, _ = open_model(run.variant, run.checkpoints[0], device)
    side = run.variant.image
    timed = [
        case
        for case in cases(run.variant)
        if TIMED.fullmatch(f"{case.method} {case.where}") and chosen(case, arguments.only)
    ]
    groups = sorted(timed, key=lambda c: (not c.headline, c.where, c.keep or 0.0))
    for batch in BATCHES:
        images = torch.randn(batch, 3, side, side, device=device, dtype=torch.float16)
        for _, together in groupby(groups, key=lambda c: (c.where, c.keep)):
            rows = [
                case
                for case in together
                if not results.has(_list_of(case), _timed_row(run.variant, side, batch, case))
            ]
            if time.perf_counter() > deadline:
                say("out of time: latencies are missing")
                return
            _time_group(run.variant, model, images, rows, results)
    results.write()


def _list_of(case: Case) -> str:
    return "latency_baselines" if case.plan is None else "latency"


def _timed_row(variant: Variant, side: int, batch: int, case: Case) -> Row:
    row: Row = {
        "model": variant.name, "size": [side, side], "batch": batch, "method": case.method,
        "where": case.where, "keep": case.keep, "flops_share": _share(variant, side, case.flops),
    }  # fmt: skip
    if case.plan is not None:
        row["plan"] = json.loads(case.plan.to_json())
    return row


def _share(variant: Variant, side: int, flops: int) -> float:
    return round(flops / count_flops(variant, side, side).total, 5)


def _time_group(
    variant: Variant, model: VMamba, images: Tensor, rows: Iterable[Case], results: Results
) -> None:
    """Time rows in turns, with the dense model among them as the measure of drift."""
    batch, _, side, _ = images.shape
    by_name = {case.method: case for case in rows}
    if not by_name:
        return
    networks: dict[str, Network] = {"dense": model}
    networks |= {name: case.build(model) for name, case in by_name.items()}
    times = time_together(networks, images)
    for name, case in by_name.items():
        row = _timed_row(variant, side, batch, case)
        row |= {"ms": times[name]["median"], "p10": times[name]["p10"], "p90": times[name]["p90"]}
        row["dense_ms"] = times["dense"]["median"]
        results.add(_list_of(case), row)


def speed_rows(arguments: argparse.Namespace, results: Results, deadline: float) -> None:
    """VMamba-T, dense and reduced, at two image sizes: times, and what they go to."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    base = build_vmamba(SPEED_MODEL)
    variant = base.variant
    model = base.to_fp16().to(device)
    for side in SPEED_SIZES:
        plans: dict[tuple[str, str, float | None], StormPlan] = {
            ("dense", "dense", None): StormPlan()
        }
        for keep in SPEED_KEEPS:
            plans["keep", f"keep={keep:g}", keep] = keep_plan(variant, side, side, keep)
            choice = plan_for_flops(variant, side, side, keep)
            plans["planner", f"flops={keep:g}", keep] = choice.plan
        rows = []
        for (method, where, share), plan in plans.items():
            flops = count_flops(variant, side, side, plan).total
            rows.append(Case(method, where, share, flops, _planned(plan), plan))
        for batch in BATCHES:
            if time.perf_counter() > deadline:
                say("out of time: times of VMamba-T are missing")
                return
            fresh = [
                case
                for case in rows
                if not results.has("latency", _timed_row(variant, side, batch, case))
            ]
            if not fresh:
                continue
            images = torch.randn(batch, 3, side, side, device=device, dtype=torch.float16)
            networks = {case.where: case.build(model) for case in fresh}
            times = time_together(networks, images)
            for name, graph in captured(networks, images).items():
                case = next(c for c in fresh if c.where == name)
                row = {**_timed_row(variant, side, batch, case), "ms": times[name]["median"]}
                row |= {"p10": times[name]["p10"], "p90": times[name]["p90"]}
                results.add("latency", {**row, **take_apart(graph)})
                say(f"{variant.name} at {side}, batch {batch}, {name}: {row['ms']:.3f} ms")
    results.write()


def _planned(plan: StormPlan) -> Any:  # Any: a builder, as Case.build
    return lambda model: model.with_plan(plan)


def main() -> None:
    """Run the parts asked for, and say in one message what is wrong."""
    arguments = parse()
    deadline = _STARTED + arguments.seconds
    try:
        runs = runs_of(arguments)
        device = torch.device(arguments.device)
        here = environment(device)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        results = Results(arguments.out, here)
        say(f"{here['device']}, PyTorch {here['torch']}, {here['precision']}")
        gc.freeze()  # a graph's capture collects garbage, which takes long among all of PyTorch
        for part in ("accuracy", "search"):
            for run in runs if part in arguments.parts else []:
                accuracy_rows(run, arguments, results, deadline, search=part == "search")
        can_time = here["library"] is not None
        if not can_time and {"latency", "speed"} & set(arguments.parts):
            say(f"latency: not run, it needs a CUDA GPU and {LIBRARY_VARIABLE}")
        if "speed" in arguments.parts and can_time:
            speed_rows(arguments, results, deadline)
        if "latency" in arguments.parts and can_time:
            for run in runs:
                latency_rows(run, arguments, results, deadline)
                say(f"{run.variant.name}: latencies done")
        results.write()
        say(f"written: {arguments.out}")
    except StormrtError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
