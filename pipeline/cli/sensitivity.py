# SPDX-License-Identifier: Apache-2.0
"""``stormrt calibrate --sensitivity``: its options, and how a ranking is shown."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from stormrt.errors import InputError
from stormrt.pipeline.cli.console import show

if TYPE_CHECKING:
    from stormrt.pipeline.schema import MixedPrecision, SensitivityReport
    from stormrt.pipeline.sensitivity.options import SensitivityOptions


class ExtraChoice(str, Enum):
    """Layers that a build leaves in float, and that can be ranked."""

    depthwise = "depthwise"
    residual = "residual"


def sensitivity_options(
    asked: bool,
    images: int | None,
    also: list[ExtraChoice] | None,
    most_error: float | None,
    most_top1_loss: float | None,
    labelled: Path | None,
) -> SensitivityOptions | None:
    """The checked options of a ranking; None where none was asked for."""
    given = {
        "--sensitivity-images": images,
        "--also": also or None,
        "--most-error": most_error,
        "--most-top1-loss": most_top1_loss,
        "--labelled": labelled,
    }
    if not asked:
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} is of a ranking", where=name, fix="add --sensitivity")
        return None
    from stormrt.pipeline.sensitivity.options import (
        DEFAULT_IMAGES,
        Budget,
        SensitivityOptions,
        check_options,
    )

    none = most_error is None and most_top1_loss is None
    options = SensitivityOptions(
        images=DEFAULT_IMAGES if images is None else images,
        extra=tuple(dict.fromkeys(choice.value for choice in also or ())),
        labelled=labelled,
        budget=None if none else Budget(most_error, most_top1_loss),
    )
    check_options(options)
    return options


def show_ranking(report: SensitivityReport, out: Path) -> None:
    """Print the layers, the trials of a budget, and the lines for a recipe."""
    from stormrt.pipeline.sensitivity.options import report_path

    on = f"{report.images} images"
    if report.top1 is not None:
        on += f"; top-1 of {report.labelled_images} labelled ones, FP32 {report.top1:.2%}"
    table = Table(title=f"Each layer alone in INT8, against FP32, on {on}")
    table.add_column("layer", overflow="fold")
    for heading in ("relative L2", "same class", *(["top-1"] if report.top1 is not None else [])):
        table.add_column(heading, justify="right")
    for layer in report.layers:
        kept = "" if layer.kind == "linear" else f" ({layer.kind}; a build keeps it in float)"
        cells = [escape(layer.layer) + kept, f"{layer.rel_l2:.2e}", f"{layer.argmax_agreement:.1%}"]
        table.add_row(*cells, *([] if layer.top1 is None else [f"{layer.top1:.2%}"]))
    show(table)
    if report.mixed is not None:
        _show_mixed(report.mixed)
    show(f"{report_path(out)}: the ranking")


def _show_mixed(mixed: MixedPrecision) -> None:
    if mixed.most_top1_loss is None:
        budget = f"relative L2 of at most {mixed.most_error:g}"
    else:
        budget = f"top-1 at most {mixed.most_top1_loss:.2%} below FP32's {mixed.top1:.2%}"
        budget += f" on {mixed.labelled_images} images"
    table = Table(title=f"The whole graph as it is built, for {budget}")
    headings = ("in float", "relative L2", "same class", "top-1", "within")
    shown = headings if mixed.top1 is not None else (*headings[:3], headings[4])
    for heading in shown:
        table.add_column(heading, justify="right")
    for trial in mixed.trials:
        cells = [str(trial.kept), f"{trial.rel_l2:.2e}", f"{trial.argmax_agreement:.1%}"]
        top1 = [] if trial.top1 is None else [f"{trial.top1:.2%}"]
        table.add_row(*cells, *top1, "yes" if trial.within else "no")
    show(table)
    if not mixed.met:
        show("The budget does not hold with every layer in float either: build FP16, or FP32.")
    elif not mixed.layers:
        show("The budget holds with no more layer in float.")
    else:
        show(f"Keep {len(mixed.layers)} in float. For the recipe:\n\n\\[quantization]")
        lines = "".join(f"    '{pattern}',\n" for pattern in mixed.keep_float)
        show(Text(f"keep_float = [\n{lines}]\n"))
