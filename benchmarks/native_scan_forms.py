# SPDX-License-Identifier: Apache-2.0
"""Compares forms of SelectiveScan2D in standard ONNX ops; the figures of docs/adr/0005.

    python -m benchmarks.native_scan_forms --json benchmarks/results/native_scan_forms.json

Each form is a stable one: decays are multiplied, never divided. For each form and shape: the time
in onnxruntime on the CPU (in rounds over all forms and shapes, so that a machine which slows
down slows all of them down), nodes after inlining, and what TensorRT-RTX makes of it for a T4
(sm_75): seconds to build, kernels, size. TensorRT-RTX builds without a GPU; nothing is run on
one, so kernels are counted and not timed. They are read from the builder's own log, because its
engine inspector needs an engine and deserialising one needs a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from stormrt.plugins.derive.onnx_function import OPSET, FunctionBody, doubling_scan
from stormrt.plugins.selective_scan_2d.onnx_function import (
    BLOCK_LENGTHS,
    build_function,
    softplus,
)

Array = npt.NDArray[np.float32]

_WIDTH = 120
WINNER = "blocked, Q = 7"
TOLERANCE = 1e-5
"""Largest relative L2 between a form and the winner; also that of the tests."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One stage of VMamba-tiny (s1l8): D, H, W, and how many layers run there. N = 1."""

    channels: int
    height: int
    width: int
    layers: int

    @property
    def length(self) -> int:
        """L."""
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}"


DENSE = (Shape(96, 56, 56, 2), Shape(192, 28, 28, 2), Shape(384, 14, 14, 8), Shape(768, 7, 7, 2))
REDUCED = (Shape(96, 48, 48, 2), Shape(192, 24, 24, 2), Shape(384, 12, 12, 8), Shape(768, 6, 6, 2))
"""What STORM leaves of 224 x 224 at keep = 0.75."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one form at one shape."""

    form: str
    shape: str
    layers: int
    nodes: int
    """After inlining, constants apart."""
    constants: int
    ort_ms: float
    """Median of the repeats."""
    ort_min_ms: float
    ratio_to_winner: float
    """Median over the rounds of (this form's time / the winner's in the same round)."""
    relative_l2_to_winner: float
    rtx_build_s: float | None
    rtx_layers: int | None
    """Network layers after parsing."""
    rtx_kernels: int | None
    """Layers of the built engine, each a kernel, by the builder's log."""
    rtx_plan_bytes: int | None


# ---------------------------------------------------------------------------------------------
# The forms that lost. They work on maps as they come, [B, 4, D, H, W], N = 1.
# ---------------------------------------------------------------------------------------------

_Recurrence = Callable[[FunctionBody, str, str, Shape], str]
"""(decay, drive) [B, 4, D, H, W] -> states of the four directions, at their positions."""


def _on_maps(recurrence: _Recurrence, shape: Shape) -> list[onnx.NodeProto]:
    """The operator around a recurrence that takes and returns maps."""
    body = FunctionBody()
    channels, height, width = shape.channels, shape.height, shape.width
    bias = body.reshape("dt_bias", 4 * channels, 1, 1, out="bias")
    delta = softplus(body, body.op("Add", "dt", bias, out="z"))
    delta = body.reshape(delta, 0, 4, channels, height, width, out="delta_k")
    a = body.reshape("a", 4, channels, 1, 1, out="a_k")
    decay = body.op("Exp", body.op("Mul", delta, a, out="log_decay"), out="decay")
    x = body.reshape("x", 0, 1, channels, height, width, out="x_k")
    b = body.reshape("b", 0, 4, 1, height, width, out="b_k")
    c = body.reshape("c", 0, 4, 1, height, width, out="c_k")
    drive = body.op("Mul", body.op("Mul", delta, x, out="delta_x"), b, out="drive")
    states = recurrence(body, decay, drive, shape)
    read = body.op("Mul", states, c, out="read")
    y = body.op("ReduceSum", read, body.ints(1), out="y_scans", keepdims=0)
    d = body.reshape("d", 4, channels, 1, 1, out="d_k")
    d = body.op("ReduceSum", d, body.ints(0), out="d_total", keepdims=0)
    body.op("Add", y, body.op("Mul", "x", d, out="skip"), out="y")
    return body.nodes


def _doubling(
    body: FunctionBody,
    decay: str,
    state: str,
    *,
    axis: int,
    length: int,
    rank: int,
    way: Literal[1, -1],
) -> tuple[str, str]:
    """Hillis and Steele (1986): (decay since the start, state); way -1 runs from the end."""
    one = body.constant(1.0, np.float32)
    distance = 1
    while distance < length:
        by = way * distance
        earlier = body.shift(state, axis=axis, by=by, rank=rank, out="earlier_state")
        state = body.multiply_add(decay, earlier, state, out="doubled_state")
        pads = [0] * (2 * rank)
        pads[axis], pads[rank + axis] = by, -by
        earlier = body.op("Pad", decay, body.ints(*pads), one, out="earlier_decay")
        decay = body.op("Mul", decay, earlier, out="doubled_decay")
        distance *= 2
    return decay, state


def _flat_doubling(body: FunctionBody, decay: str, drive: str, shape: Shape) -> str:
    """Form 1: doubling over all L positions; reversed directions shift the other way."""
    channels, height, width = shape.channels, shape.height, shape.width

    def sequences(value: str, name: str) -> list[str]:
        parts = body.split(value, axis=1, parts=4, out=name)
        for k in (1, 3):
            parts[k] = body.op("Transpose", parts[k], out=f"{name}_turned", perm=[0, 1, 2, 4, 3])
        flat = [body.reshape(p, 0, 1, channels, shape.length, out=f"{name}_flat") for p in parts]
        return [body.op("Concat", flat[k], flat[k + 1], out=f"{name}_way", axis=1) for k in (0, 2)]

    orders = []
    ways: tuple[Literal[1, -1], ...] = (1, -1)
    for way, decays, drives in zip(
        ways, sequences(decay, "decay"), sequences(drive, "drive"), strict=True
    ):
        length = shape.length
        h = doubling_scan(body, decays, drives, axis=3, length=length, rank=4, way=way)
        rows, columns = body.split(h, axis=1, parts=2, out="h_order")
        rows = body.reshape(rows, 0, 1, channels, height, width, out="h_rows")
        columns = body.reshape(columns, 0, 1, channels, width, height, out="h_turned")
        columns = body.op("Transpose", columns, out="h_columns", perm=[0, 1, 2, 4, 3])
        orders += [rows, columns]
    return body.op("Concat", *orders, out="states", axis=1)


def _line_doubling(body: FunctionBody, decay: str, drive: str, shape: Shape) -> str:
    """Form 2: doubling within lines, on the map as it is, then over the lines' ends."""
    decays = body.split(decay, axis=1, parts=4, out="decay_k")
    drives = body.split(drive, axis=1, parts=4, out="drive_k")
    states = []
    for k in range(4):
        way: Literal[1, -1] = 1 if k < 2 else -1
        along, across = (4, 3) if k % 2 == 0 else (3, 4)
        extent = {3: shape.height, 4: shape.width}
        product, h = _doubling(
            body, decays[k], drives[k], axis=along, length=extent[along], rank=5, way=way
        )
        if extent[across] > 1:
            last = extent[along] - 1 if way == 1 else 0
            bounds = (body.ints(last), body.ints(last + 1), body.ints(along))
            end_product = body.op("Slice", product, *bounds, out="end_product")
            end_state = body.op("Slice", h, *bounds, out="end_state")
            total = doubling_scan(
                body, end_product, end_state, axis=across, length=extent[across], rank=5, way=way
            )
            carry = body.shift(total, axis=across, by=way, rank=5, out="carry")
            h = body.multiply_add(product, carry, h, out="line_state")
        states.append(h)
    return body.op("Concat", *states, out="states", axis=1)


def _decay_matrix(body: FunctionBody, _decay: str, drive: str, shape: Shape) -> str:
    """Form 4: h = M u with M[i, j] the product of decays j+1..i, for short sequences only.

    M = exp(s_i - s_j), s the running sum of delta a in FP32, is at most 1 where j <= i, and the
    exponent is masked before it is taken where j > i. Work and memory are L times the others'.
    No MatMul: each channel has a matrix of its own, for one vector, and TensorRT-RTX 1.7 does
    not compile an FP32 GEMM for sm_75.
    """
    channels, length = shape.channels, shape.length
    visit = np.empty((4, length), np.int64)  # when each position is visited
    positions = np.arange(length).reshape(shape.height, shape.width)
    for k in range(4):
        order = positions.T.ravel() if k % 2 else positions.ravel()
        visit[k, order[::-1] if k > 1 else order] = np.arange(length)
    not_after = visit[:, None, :, None] >= visit[:, None, None, :]  # [4, 1, L, L]

    log_row = body.reshape("log_decay", 0, 4, channels, 1, length, out="log_row")
    kept = body.op("Mul", log_row, _tensor(body, not_after.astype(np.float32), "mask"), out="kept")
    running = body.op("ReduceSum", kept, body.ints(4), out="running_sum", keepdims=1)
    row = body.reshape(running, 0, 4, channels, 1, length, out="sum_from")
    gap = body.op("Sub", running, row, out="log_gap")
    never = body.constant(-1e30, np.float32)
    gap = body.op("Where", _tensor(body, not_after, "not_after"), gap, never, out="log_masked")
    matrix = body.op("Exp", gap, out="decay_matrix")
    u = body.reshape(drive, 0, 4, channels, 1, length, out="drive_row")
    terms = body.op("Mul", matrix, u, out="terms")
    h = body.op("ReduceSum", terms, body.ints(4), out="matrix_state", keepdims=0)
    return body.reshape(h, 0, 4, channels, shape.height, shape.width, out="states")


def _tensor(body: FunctionBody, values: npt.NDArray[Any], name: str) -> str:
    return body.op(
        "Constant", out=name, value=numpy_helper.from_array(np.ascontiguousarray(values))
    )


def _blocked(shape: Shape, block_lengths: tuple[int, ...]) -> list[onnx.NodeProto]:
    function = build_function(
        channels=shape.channels,
        height=shape.height,
        width=shape.width,
        state=1,
        dtype="float32",
        block_lengths=block_lengths,
    )
    return list(function.node)


def _with_softplus_operator(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The operator Softplus in place of what softplus() emits."""
    inner = {"z_clipped", "z_exp", "one_plus_exp", "log_one_plus_exp"}
    return [
        helper.make_node("Softplus", [node.input[0]], ["delta"], "delta")
        if node.output[0] == "delta"
        else node
        for node in nodes
        if node.output[0] not in inner
    ]


FORMS: dict[str, Callable[[Shape], list[onnx.NodeProto] | None]] = {
    WINNER: lambda s: _blocked(s, BLOCK_LENGTHS),
    "Q = 7, op Softplus": lambda s: _with_softplus_operator(_blocked(s, BLOCK_LENGTHS)),
    "blocked, Q = 4": lambda s: _blocked(s, (4, 5, 6, 7)),
    "blocked, Q = 14": lambda s: _blocked(s, (14, 12, 7, 8, 6, 4)),
    "lines by doubling": lambda s: _on_maps(_line_doubling, s),
    "all by doubling": lambda s: _on_maps(_flat_doubling, s),
    "decay matrix": lambda s: _on_maps(_decay_matrix, s) if s.length <= 64 else None,
}


# ---------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------


def _model(nodes: list[onnx.NodeProto], shape: Shape, batch: int | str) -> onnx.ModelProto:
    """A model of one operator, with the parameters as initializers, as in a real graph."""
    channels = shape.channels
    rng = np.random.default_rng(0)
    parameters = {
        "a": -rng.uniform(0.3, 3.0, (4 * channels, 1)),
        "d": rng.normal(size=4 * channels) * 0.1,
        "dt_bias": np.log(np.expm1(rng.uniform(0.02, 1.0, 4 * channels))),
    }

    def info(name: str, rows: int) -> onnx.ValueInfoProto:
        dims = [batch, rows, shape.height, shape.width]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    graph = helper.make_graph(
        nodes,
        "selective_scan_2d",
        [info("x", channels), info("dt", 4 * channels), info("b", 4), info("c", 4)],
        [info("y", channels)],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in parameters.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _feeds(shape: Shape) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    sizes = {"x": shape.channels, "dt": 4 * shape.channels, "b": 4, "c": 4}
    return {
        name: rng.normal(size=(1, rows, shape.height, shape.width)).astype(np.float32)
        for name, rows in sizes.items()
    }


class _Contest:
    """All forms at one shape, timed in rounds. All sessions share one thread pool."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        bodies = {form: make(shape) for form, make in FORMS.items()}
        self.nodes = {form: body for form, body in bodies.items() if body is not None}
        options = onnxruntime.SessionOptions()
        # Pools of their own would leave one session's threads spinning beside the next's.
        options.use_per_session_threads = False
        options.log_severity_level = 3
        self.sessions = {
            form: onnxruntime.InferenceSession(
                _model(body, shape, "batch").SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
            )
            for form, body in self.nodes.items()
        }
        self.feeds = _feeds(shape)
        self.times_ms: dict[str, list[float]] = {form: [] for form in self.sessions}

    def run_round(self) -> None:
        """Times each form once, in random order: what else runs here may have a rhythm."""
        for form in random.sample(list(self.sessions), len(self.sessions)):
            session = self.sessions[form]
            session.run(None, self.feeds)  # brings its memory back into the caches
            start = time.perf_counter()
            session.run(None, self.feeds)
            self.times_ms[form].append((time.perf_counter() - start) * 1e3)

    def check(self) -> dict[str, float]:
        """Relative L2 of each form's output to the winner's, which must be within TOLERANCE."""
        outputs = {f: session.run(None, self.feeds)[0] for f, session in self.sessions.items()}
        expected = outputs[WINNER]
        errors = {
            form: float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
            for form, y in outputs.items()
        }
        for form, error in errors.items():
            if not error < TOLERANCE:
                raise RuntimeError(f"{form} at {self.shape} is off by {error:.2g} (relative L2)")
        return errors

    def results(self) -> list[Result]:
        """Figures of all forms; builds with TensorRT-RTX, so only once the timing is done."""
        errors = self.check()
        of_winner = self.times_ms[WINNER]
        results = []
        for form, body in self.nodes.items():
            times = self.times_ms[form]
            pairs = zip(times, of_winner, strict=True)
            constants = sum(node.op_type == "Constant" for node in body)
            rtx = _build_rtx(_model(body, self.shape, 1))
            results.append(
                Result(
                    form=form,
                    shape=str(self.shape),
                    layers=self.shape.layers,
                    nodes=len(body) - constants,
                    constants=constants,
                    ort_ms=round(median(times), 3),
                    ort_min_ms=round(min(times), 3),
                    ratio_to_winner=round(median(mine / its for mine, its in pairs), 2),
                    relative_l2_to_winner=errors[form],
                    rtx_build_s=round(rtx["rtx_build_s"], 2) if rtx else None,
                    rtx_layers=int(rtx["rtx_layers"]) if rtx else None,
                    rtx_kernels=int(rtx["rtx_kernels"]) if rtx else None,
                    rtx_plan_bytes=int(rtx["rtx_plan_bytes"]) if rtx else None,
                )
            )
        return results


def _build_rtx(model: onnx.ModelProto) -> dict[str, float | int] | None:
    """Builds for a T4 with TensorRT-RTX; None where it is not installed."""
    try:
        import tensorrt_rtx as trt
    except ImportError:
        return None

    class Recorder(trt.ILogger):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, _severity: object, message: str) -> None:
            self.messages.append(message)

    logger = Recorder()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise RuntimeError("\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if plan is None:
        raise RuntimeError("TensorRT-RTX did not build the network: " + logger.messages[-1])
    kernels = sum(
        line.count("LayerType: ")
        for message in logger.messages
        if message.startswith("Layers:")
        for line in message.splitlines()
    )
    return {
        "rtx_build_s": seconds,
        "rtx_layers": network.num_layers,
        "rtx_kernels": kernels,
        "rtx_plan_bytes": plan.nbytes,
    }


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _environment(threads: int, repeats: int) -> dict[str, Any]:
    packages = ("numpy", "onnx", "onnxruntime", "tensorrt_rtx_cu13", "tensorrt_rtx")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "repeats": repeats,
        "load_average_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: v for name in packages if (v := _version(name))},
    }


def _print(results: list[Result], title: str) -> None:
    table = Table(title=title)
    table.add_column("form", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    columns = (
        "nodes",
        "+ const",
        "ORT ms",
        "min",
        "ratio",
        "RTX kernels",
        "RTX build s",
        "plan MB",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for r in results:
        rtx: tuple[str, str, str] = ("-", "-", "-")
        if r.rtx_kernels is not None and r.rtx_plan_bytes is not None:
            rtx = (str(r.rtx_kernels), f"{r.rtx_build_s:.2f}", f"{r.rtx_plan_bytes / 1e6:.1f}")
        times = (f"{r.ort_ms:.2f}", f"{r.ort_min_ms:.2f}", f"{r.ratio_to_winner:.2f}")
        cells = (str(r.nodes), str(r.constants), *times)
        table.add_row(r.form, r.shape, *cells, *rtx)
    Console(width=_WIDTH).print(table)


def _totals(results: list[Result]) -> dict[str, dict[str, float]]:
    """All layers of the model, by form; forms that do not cover every shape are left out."""
    shapes = {r.shape for r in results}
    totals: dict[str, dict[str, float]] = {}
    for form in FORMS:
        rows = [r for r in results if r.form == form]
        if {r.shape for r in rows} != shapes:
            continue
        totals[form] = {
            "ort_ms": round(sum(r.ort_ms * r.layers for r in rows), 1),
            "ort_min_ms": round(sum(r.ort_min_ms * r.layers for r in rows), 1),
            "nodes_and_constants": sum((r.nodes + r.constants) * r.layers for r in rows),
        }
        if all(r.rtx_kernels is not None for r in rows):
            totals[form]["rtx_kernels"] = sum((r.rtx_kernels or 0) * r.layers for r in rows)
    for total in totals.values():
        total["ratio_of_min"] = round(total["ort_min_ms"] / totals[WINNER]["ort_min_ms"], 2)
    return totals


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30, help="rounds over all forms and shapes")
    parser.add_argument("--threads", type=int, default=2, help="of onnxruntime")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()

    onnxruntime.set_global_thread_pool_sizes(arguments.threads, 1)
    report: dict[str, Any] = {
        "schema_version": 1,
        "environment": _environment(arguments.threads, arguments.repeats),
        "winner": WINNER,
        "results": [],
        "totals": {},
    }
    stages = {"dense": DENSE, "keep 0.75": REDUCED}
    contests = {name: [_Contest(s) for s in shapes] for name, shapes in stages.items()}
    for contest in itertools.chain.from_iterable(contests.values()):
        contest.check()
    # Rounds go over all shapes: a busy minute then costs each form and shape a few repeats, and
    # not one shape all of its.
    for _ in range(arguments.repeats):
        for contest in itertools.chain.from_iterable(contests.values()):
            contest.run_round()
    report["environment"]["load_average_after"] = round(os.getloadavg()[0], 2)
    for name in stages:
        results = [r for contest in contests[name] for r in contest.results()]
        _print(results, f"SelectiveScan2D in standard ops, {name}")
        totals = _totals(results)
        for form, total in totals.items():
            values = ", ".join(f"{name} {value}" for name, value in total.items())
            Console(width=_WIDTH).print(f"  all layers, {form:26} {values}", highlight=False)
        report["results"] += [asdict(r) for r in results]
        report["totals"][name] = totals
    if arguments.json:
        partial = arguments.json.with_suffix(".partial")
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        partial.replace(arguments.json)


if __name__ == "__main__":
    main()
