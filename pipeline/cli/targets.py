# SPDX-License-Identifier: Apache-2.0
"""``stormrt targets``: the recipes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from stormrt.errors import EXIT_VERDICT, EnvironmentMissingError
from stormrt.pipeline import probe
from stormrt.pipeline.cli.console import JsonOption, show, show_json
from stormrt.targets import dump_target, list_targets, load_target
from stormrt.targets.check import MachineFacts, compare, distance, fits

if TYPE_CHECKING:
    from stormrt.targets import RuntimeName, Target
    from stormrt.targets.check import Comparison

app = typer.Typer(help="Show the target recipes.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """List the targets."""
    targets = [load_target(name) for name in list_targets()]
    if as_json:
        show_json([{"id": t.id, "description": t.description} for t in targets])
        return
    table = Table("target", "board", "compute capability", "memory", "runtimes", "precisions")
    for t in targets:
        table.add_row(
            t.id,
            t.description,
            t.compute_capability,
            f"{t.device.memory_mib // 1024} GiB",
            ", ".join(t.runtime_names),
            ", ".join(t.build.precisions),
        )
    show(table)


@app.command("show")
def show_command(
    target: Annotated[str, typer.Argument(help="A target's id, or a recipe's .toml.")],
    as_json: JsonOption = False,
) -> None:
    """Show one recipe, resolved."""
    recipe = dump_target(load_target(target))
    if as_json:
        show_json(recipe)
        return
    table = Table(show_header=False)
    for key, value in _flatten("", recipe):
        table.add_row(key, str(value))
    show(table)


@app.command("check")
def check_command(
    target: Annotated[
        str | None, typer.Argument(help="A target's id, or a recipe's .toml. Default: all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a recipe with this machine; without one, say which recipe fits best.

    Exit code 1 where something differs that matters, 3 where this machine has no GPU.
    """
    targets = [load_target(target)] if target else [load_target(name) for name in list_targets()]
    machine = _facts(probe.probe_machine())
    found = sorted(((compare(t, machine), t) for t in targets), key=lambda pair: distance(pair[0]))
    if as_json:
        show_json([{"target": t.id, "fits": fits(c), "facts": _as_json(c)} for c, t in found])
    elif target:
        _show_one(*found[0])
    else:
        _show_all(found)
    if not fits(found[0][0]):
        raise typer.Exit(EXIT_VERDICT)


def _facts(machine: probe.Machine) -> MachineFacts:
    if machine.cuda.reason is not None:
        raise EnvironmentMissingError(
            "a recipe is compared with this machine's GPU, and there is none",
            got=machine.cuda.reason,
            fix="type this on the target; stormrt doctor says more of this machine",
        )
    # CUDA gives a process device 0 unless it asks for another, and nothing here does.
    gpu, board = machine.cuda.gpus[0], machine.jetson
    names: tuple[tuple[str, RuntimeName], ...] = (
        ("tensorrt", "tensorrt"),
        ("tensorrt-rtx", "tensorrt_rtx"),
    )
    packages = dict(machine.packages)
    return MachineFacts(
        gpu=gpu.name,
        sm=gpu.sm,
        sm_count=gpu.sm_count,
        arch=machine.arch,
        memory_mib=gpu.memory_mib,
        is_jetson=board is not None,
        board=_known(board.model) if board else None,
        jetpack=_known(board.jetpack) if board else None,
        l4t=_known(board.l4t) if board else None,
        runtimes=tuple((r, _known(packages[d])) for d, r in names if d in packages),
    )


def _known(text: str) -> str | None:
    return None if text == probe.UNKNOWN else text


def _as_json(comparisons: tuple[Comparison, ...]) -> list[dict[str, object]]:
    return [asdict(c) for c in comparisons]


def _show_one(comparisons: tuple[Comparison, ...], target: Target) -> None:
    table = Table("", target.id, "this machine", "", "")
    for c in comparisons:
        table.add_row(c.what, c.recipe, c.machine, _verdict(c), c.note)
    show(table)
    show("fits" if fits(comparisons) else "does not fit")


def _show_all(found: list[tuple[tuple[Comparison, ...], Target]]) -> None:
    table = Table("target", "", "what differs")
    for comparisons, target in found:
        differing = [c for c in comparisons if c.status == "differs"]
        said = "; ".join(f"{c.what}: {c.machine}, not {c.recipe}" for c in differing)
        table.add_row(target.id, "fits" if fits(comparisons) else "does not fit", said)
    show(table)


def _verdict(comparison: Comparison) -> str:
    if comparison.status != "differs":
        return comparison.status
    return "differs" if comparison.matters else "differs (no harm)"


def _flatten(prefix: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return [
            row
            for key, inner in value.items()
            for row in _flatten(f"{prefix}.{key}" if prefix else str(key), inner)
        ]
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return [row for i, inner in enumerate(value) for row in _flatten(f"{prefix}.{i}", inner)]
    return [(prefix, ", ".join(map(str, value)) if isinstance(value, list) else value)]
