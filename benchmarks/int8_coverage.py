# SPDX-License-Identifier: Apache-2.0
"""What INT8 covers in published VMambas with seeded weights: Q/DQ, sizes, errors, engine layers.

    python -m benchmarks.int8_coverage

Of each model at its own size: every Conv, Gemm and MatMul of the very graph that a build lowers,
whether it carries Q/DQ and else by which reason of the policy; sizes of graphs and TensorRT-RTX
engines beside FP16's; the error of each layer's own rounding, and of each block's output, in
onnxruntime; and in which type the engine multiplies each. Calibration is on the photographs that
come with scikit-image and scikit-learn, which is enough for weights that mean nothing. Writes
benchmarks/results/int8_coverage.json after each model, and goes on where it was cut off.
``python benchmarks/render_figures.py`` makes the tables of docs/int8.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.operator_bench.report import write
from stormrt.calibration.images import choose_images
from stormrt.calibration.table import CalibrationTable
from stormrt.pipeline.artifacts import INPUT_NAME, OUTPUT_NAME, ModelSpec
from stormrt.pipeline.calibrate import RangeOptions, calibrate_graph
from stormrt.pipeline.comparison import expose, open_session
from stormrt.pipeline.engine import build_engine
from stormrt.pipeline.engine_layers import multiplied_in, parse_layers
from stormrt.pipeline.evaluation import MOST_UNREADABLE
from stormrt.pipeline.export import export
from stormrt.pipeline.gate import local_errors
from stormrt.pipeline.lower import lower
from stormrt.pipeline.model_spec import resolve_spec
from stormrt.pipeline.onnx_file import load_onnx
from stormrt.pipeline.photographs import packaged_photographs
from stormrt.pipeline.precision import set_precision
from stormrt.pipeline.provenance import tools
from stormrt.pipeline.quantize.overflow import search_overflow
from stormrt.pipeline.quantize.policy import DEFAULT_POLICY, QuantizationPolicy, kept_nodes
from stormrt.pipeline.rewrite.name_by_module import boundary_values
from stormrt.targets import Precision, load_target

RESULTS = Path(__file__).parent / "results" / "int8_coverage.json"
MODELS = ("vmamba_tiny_s1l8", "vmamba_small_s2l15", "vmamba_base_s2l15")
TARGETS = {"SM 7.5": "t4", "SM 8.6": "rtx-3090"}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_LINEAR = ("Conv", "Gemm", "MatMul")

Row = dict[str, Any]


@dataclass(frozen=True)
class LinearNode:
    """A Conv, Gemm or MatMul of the INT8 graph."""

    name: str
    op: str
    quantised: bool
    """Both the map and the weight come from a DequantizeLinear."""
    reason: str | None
    """Why not, by the policy."""


def linear_coverage(
    exported: onnx.ModelProto,
    lowered: onnx.ModelProto,
    policy: QuantizationPolicy = DEFAULT_POLICY,
    islands: frozenset[str] = frozenset(),
) -> tuple[LinearNode, ...]:
    """Every Conv, Gemm and MatMul of a lowered INT8 graph, functions' own among them.

    Args:
        exported: What it was made from.
        lowered: The native graph.
        policy: What stays in float.
        islands: Nodes beside values that FP16 cannot hold.

    Raises:
        ValueError: One carries no Q/DQ, and the policy has no reason for it; or carries some in
            spite of a reason.
    """
    reasons = {node.name: node.reason for node in kept_nodes(exported, policy)}
    reasons |= dict.fromkeys(islands - reasons.keys(), "a value beside it overflows FP16")
    restored = {n.output[0] for n in lowered.graph.node if n.op_type == "DequantizeLinear"}
    found = tuple(
        LinearNode(n.name, n.op_type, set(n.input[:2]) <= restored, reasons.get(n.name))
        for n in lowered.graph.node
        if n.op_type in _LINEAR
    )
    wrong = [node.name for node in found if node.quantised == (node.reason is not None)]
    if wrong:
        raise ValueError(f"Q/DQ and the policy differ at {', '.join(wrong)}")
    return found


def block_errors(
    reference: Path, graph: Path, images: NDArray[np.float32]
) -> tuple[tuple[str, float], ...]:
    """Relative L2 of each module's output between two native graphs, in order; the logits last."""
    models = [load_onnx(path) for path in (reference, graph)]
    known = [{v.name for v in model.graph.value_info} for model in models]
    names = [n for n in boundary_values(models[0].graph) if n in known[0] & known[1]]
    for model in models:
        expose(model, names)
    sessions = [open_session(m.SerializeToString(), "a native graph") for m in models]
    wanted = [*names, OUTPUT_NAME]
    sums = np.zeros((len(wanted), 2))
    for image in images:
        fed = {INPUT_NAME: image[None]}
        pairs = zip(*(session.run(wanted, fed) for session in sessions), strict=True)
        for row, (x, y) in zip(sums, pairs, strict=True):
            exact = np.asarray(x, np.float64)
            row += np.square(np.asarray(y, np.float64) - exact).sum(), np.square(exact).sum()
    errors = np.sqrt(sums[:, 0] / sums[:, 1])
    return tuple((name, float(f"{e:.4g}")) for name, e in zip(wanted, errors, strict=True))


@dataclass(frozen=True)
class Made:
    """A model's graphs, and what they were calibrated on."""

    spec: ModelSpec
    folder: Path
    table: CalibrationTable
    images: NDArray[np.float32]

    def native(self, precision: Precision) -> Path:
        """The lowered graph."""
        return self.folder / f"native-{precision}.onnx"


def make(model: str, photographs: Sequence[Path], folder: Path) -> Made:
    """Export, calibrate, and lower in every precision."""
    spec = resolve_spec(model)
    exported = export(spec, folder / "exported.onnx")
    chosen = choose_images(
        tuple(photographs),
        spec.height,
        spec.width,
        wanted=len(photographs),
        split=None,
        most_unusable=MOST_UNREADABLE,
    )
    source = folder / "exported.onnx"
    table = calibrate_graph(spec, source, exported.file.sha256, chosen, RangeOptions(), folder)
    images = np.stack([chosen.load(index) for index in range(len(chosen.images))])
    made = Made(spec, folder, table, images)
    for precision in PRECISIONS:
        set_precision(source, precision, folder / "quantized.onnx", table, DEFAULT_POLICY)
        lower(folder / "quantized.onnx", made.native(precision), None)
    return made


def measure(made: Made, *, engines: bool) -> Row:
    """Everything that the results hold of one model."""
    exported = load_onnx(made.folder / "exported.onnx")
    overflow = search_overflow(exported, made.table, smoothed=True)
    nodes = linear_coverage(
        exported, load_onnx(made.native("int8")), DEFAULT_POLICY, overflow.islands
    )
    local = local_errors(
        made.native("int8"), made.native("fp16"), made.table.smoothing, made.images, 1
    )
    rows = [asdict(node) for node in nodes]
    by_name = {row["name"]: row for row in rows}
    weights = {i.name for i in load_onnx(made.native("fp16")).graph.initializer}
    for error in local:
        what = "weight_error" if error.tensor in weights else "activation_error"
        by_name[error.layer][what] = float(f"{error.rel_l2:.4g}")
    return {
        "model": made.spec.name,
        "size": [made.spec.height, made.spec.width],
        "images": len(made.images),
        "onnx_bytes": {p: made.native(p).stat().st_size for p in PRECISIONS},
        "blocks": {
            p: dict(block_errors(made.native("fp32"), made.native(p), made.images))
            for p in PRECISIONS[1:]
        },
        "fp16_range": overflow.describe(),
        "engines": {sm: _engines(made, target, rows, sm) for sm, target in TARGETS.items()}
        if engines
        else {},
        "layers": rows,
    }


def _engines(made: Made, target: str, rows: list[Row], sm: str) -> Row:
    """Sizes and types of the engines for one GPU; each layer's type goes into its row."""
    found: Row = {}
    for precision in PRECISIONS[1:]:
        built = build_engine(
            made.native(precision),
            runtime="tensorrt_rtx",
            target=load_target(target),
            out=made.folder / "engine.plan",
        )
        layers = parse_layers(built.layers)
        types = multiplied_in(layers, [row["name"] for row in rows])
        if precision == "int8":
            for row in rows:
                row[sm] = types.get(row["name"], "not told")
        told = Counter(types.values())
        told["not told"] = len(rows) - len(types)
        found[precision] = {
            "bytes": built.size_bytes,
            "kernels": len(layers),
            "seconds": round(built.build_seconds, 1),
            "types": {kind: count for kind, count in sorted(told.items()) if count},
        }
    return found


def main() -> None:
    """Measure what is not there yet."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--no-engines", action="store_true")
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
    if not arguments.no_engines:
        import tensorrt_rtx

        content["environment"]["tools"]["tensorrt_rtx"] = tensorrt_rtx.__version__
    for model in arguments.models:
        if any(row["model"] == model for row in content["rows"]):
            continue
        with tempfile.TemporaryDirectory(prefix="stormrt-int8-") as folder:
            made = make(model, packaged_photographs(), Path(folder))
            content["rows"].append(measure(made, engines=not arguments.no_engines))
        write(arguments.out, content)
        print(model, flush=True)


if __name__ == "__main__":
    main()
