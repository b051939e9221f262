# SPDX-License-Identifier: Apache-2.0
"""What INT8 costs in accuracy: top-1 of the very Q/DQ graphs that builds lower, in onnxruntime.

    python -m benchmarks.int8_accuracy --run vmamba_nano_scenes scenes128.npz \
        --run vmamba_nano_cifar10 cifar10.npz

For every model and plan FP32, FP16 and INT8 as a build makes it, on the whole test set; of the
first plan also every observer with and without smoothing, on ``--limit`` images. Mixed precision on
the whole test set: the fewest layers in float so that the logits' error on 32 calibration images is
at most half of plain INT8's; of the first plan also a quarter. Calibration is on 512 training
images. Writes benchmarks/results/int8_accuracy.json after each row, and goes on where it was cut
off. ``python benchmarks/render_figures.py`` makes the tables of docs/int8.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.operator_bench.report import write
from stormrt.calibration.images import ENOUGH, CalibrationImages, choose_images
from stormrt.calibration.table import CalibrationTable, ObserverName
from stormrt.pipeline.artifacts import ModelSpec
from stormrt.pipeline.calibrate import RangeOptions, calibrate_graph
from stormrt.pipeline.evaluation import MOST_UNREADABLE, top1_of
from stormrt.pipeline.export import export
from stormrt.pipeline.lower import lower
from stormrt.pipeline.model_spec import resolve_spec
from stormrt.pipeline.precision import set_precision
from stormrt.pipeline.predictors import onnxruntime_predictor
from stormrt.pipeline.provenance import tools
from stormrt.pipeline.quantize.policy import DEFAULT_POLICY, QuantizationPolicy
from stormrt.pipeline.sensitivity.bench import Subject
from stormrt.pipeline.sensitivity.mixed import mixed_precision
from stormrt.pipeline.sensitivity.options import DEFAULT_IMAGES, Budget
from stormrt.pipeline.sensitivity.ranking import rank_layers

RESULTS = Path(__file__).parent / "results" / "int8_accuracy.json"
BATCH = 8
PLANS = ("keep=1", "keep=0.75", "keep=0.5")
SHARES = (0.5, 0.25)
"""Budgets of mixed precision, as shares of the error without it; all but the first only densely."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to make a graph."""

    precision: str
    options: RangeOptions | None = None
    share: float | None = None
    """Of mixed precision."""

    def facts(self) -> Row:
        """What tells it apart."""
        o = self.options
        return {
            "precision": self.precision,
            "observer": None if o is None else o.observer,
            "smoothing": None if o is None else o.smoothing,
            **({} if self.share is None else {"share": self.share}),
        }


HEADLINE = (Variant("fp32"), Variant("fp16"), Variant("int8", RangeOptions()))


def observers() -> Iterator[Variant]:
    """Every observer, with and without smoothing."""
    for observer in get_args(ObserverName):
        for smoothing in (True, False):
            yield Variant("int8", RangeOptions(observer, smoothing=smoothing))


class Bench:
    """One model with one plan: its exported graph, and what was observed of it.

    Args:
        spec: The model.
        data: An npz with training and test images.
        folder: For graphs and statistics.
    """

    def __init__(self, spec: ModelSpec, data: Path, folder: Path) -> None:
        self.spec, self.data, self.folder = spec, data, folder
        self.exported = export(spec, folder / "exported.onnx")
        self._images: CalibrationImages | None = None

    def images(self) -> CalibrationImages:
        """The calibration images, chosen once."""
        if self._images is None:
            self._images = choose_images(
                (self.data,),
                self.spec.height,
                self.spec.width,
                wanted=ENOUGH,
                split="train",
                most_unusable=MOST_UNREADABLE,
            )
        return self._images

    def table(self, options: RangeOptions) -> CalibrationTable:
        """The calibration table for some options; what was observed is kept."""
        return calibrate_graph(
            self.spec,
            self.folder / "exported.onnx",
            self.exported.file.sha256,
            self.images(),
            options,
            self.folder,
        )

    def measure(self, variant: Variant, limit: int | None) -> Row:
        """Make a graph and take its top-1."""
        table = None if variant.options is None else self.table(variant.options)
        policy, facts = DEFAULT_POLICY, {}
        if table is not None and variant.share is not None:
            policy, facts = self.mixed(table, variant.share)
        quantized, native = self.folder / "quantized.onnx", self.folder / "native.onnx"
        set_precision(self.folder / "exported.onnx", variant.precision, quantized, table, policy)
        lower(quantized, native, None)
        started = time.perf_counter()
        top1, images = top1_of(
            onnxruntime_predictor(native, self.spec), self.spec, self.data, limit
        )
        return {
            **facts,
            "top1": round(top1, 6),
            "images": images,
            "onnx_bytes": native.stat().st_size,
            "seconds": round(time.perf_counter() - started, 1),
        }

    def mixed(self, table: CalibrationTable, share: float) -> tuple[QuantizationPolicy, Row]:
        """The fewest layers in float for a share of the error that INT8 has without them."""
        images = np.stack([self.images().load(index) for index in range(DEFAULT_IMAGES)])
        subject = Subject(self.folder / "exported.onnx", table, images, self.folder)
        ranked = rank_layers(subject)
        plain = mixed_precision(ranked, subject, Budget(most_error=1e9)).mixed
        assert plain is not None  # it was asked for
        error = plain.trials[0].rel_l2
        found = mixed_precision(ranked, subject, Budget(most_error=share * error)).mixed
        assert found is not None
        if not found.met:
            raise SystemExit(f"{self.spec.name}: no layers in float keep {share:g} of the error")
        kept = len(found.layers)
        row = {
            "layers": len(ranked.layers),
            "kept": list(found.layers),
            "error": round(next(t.rel_l2 for t in found.trials if t.kept == kept), 6),
            "error_without": round(error, 6),
        }
        return DEFAULT_POLICY.keeping(found.keep_float), row


def main() -> None:
    """Measure what is not there yet."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs=2, action="append", required=True,
                        metavar=("MODEL", "DATA"))  # fmt: skip
    parser.add_argument("--plans", nargs="+", default=list(PLANS))
    parser.add_argument("--limit", type=int, default=1000, help="images of the observers' rows")
    parser.add_argument("--headline-limit", type=int, help="images of the other rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    content: Row = {"schema_version": 1, "rows": []}
    if arguments.out.is_file():
        content = json.loads(arguments.out.read_text())
    content["environment"] = {
        "cpus": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "tools": {tool.name: tool.version for tool in tools()},
    }

    def known(facts: Row) -> bool:
        return any(all(row.get(k) == v for k, v in facts.items()) for row in content["rows"])

    for model, data in arguments.run:
        for plan in arguments.plans:
            spec = resolve_spec(model, storm=plan, batch=BATCH)
            wanted = [(v, arguments.headline_limit, "headline") for v in HEADLINE]
            if plan == arguments.plans[0]:
                wanted += [(v, arguments.limit, "observers") for v in (*HEADLINE[:2], *observers())]
            shares = SHARES if plan == arguments.plans[0] else SHARES[:1]
            wanted += [
                (Variant("int8", RangeOptions(), share), arguments.headline_limit, "mixed")
                for share in shares
            ]
            facts = [
                {"model": model, "plan": plan, "kind": kind, **variant.facts()}
                for variant, _, kind in wanted
            ]
            if all(map(known, facts)):
                continue
            with tempfile.TemporaryDirectory(prefix="stormrt-int8-") as folder:
                bench = Bench(spec, Path(data), Path(folder))
                for (variant, limit, _), row in zip(wanted, facts, strict=True):
                    if known(row):
                        continue
                    row.update(bench.measure(variant, limit))
                    content["rows"].append(row)
                    write(arguments.out, content)
                    print(row, flush=True)


if __name__ == "__main__":
    main()
