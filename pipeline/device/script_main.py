# SPDX-License-Identifier: Apache-2.0
"""The command line of ``build_engine.py``: the device phase where nothing may be installed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import stormrt
from stormrt.errors import EXIT_INPUT, EXIT_OK, EXIT_VERDICT, EnvironmentMissingError, StormrtError
from stormrt.pipeline.device.bundle import read_manifest
from stormrt.pipeline.device.names import DEVICE_REPORT_NAME, PLUGIN_SOURCES_NAME, SCRIPT_NAME
from stormrt.pipeline.device.phase import PhaseOptions, bundle_command, run_device_phase
from stormrt.pipeline.device.report import DeviceReport, Number, to_json

_LIBRARY_VARIABLE = "STORMRT_PLUGIN_LIB"
_INTERRUPTED = 130


def main(arguments: Sequence[str], folder: Path) -> int:
    """Build the bundle that the script lies in, or the one that is named.

    Args:
        arguments: Of the command line, without the program's name.
        folder: Where the script is.

    Returns:
        The exit code.
    """
    asked = _parse(arguments, folder)
    if asked.plugin_lib is not None:
        os.environ[_LIBRARY_VARIABLE] = str(asked.plugin_lib)
    try:
        report = _run(asked.bundle, asked.runtime)
    except StormrtError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing that was built before is lost\n")
        return _INTERRUPTED
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_INPUT
    sys.stdout.write(to_json(report) if asked.json else _text(report, asked.bundle))
    return EXIT_OK if report.passed else EXIT_VERDICT


def _parse(arguments: Sequence[str], folder: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=SCRIPT_NAME,
        description="Builds this bundle's engine on the machine that it is for, checks it against "
        "PyTorch's results and times it. Needs NumPy and TensorRT; no network.",
        epilog="Exit codes: 0 fine, 1 the engine is too far from PyTorch, 2 bad input, 3 something "
        "is missing.",
    )
    parser.add_argument("bundle", nargs="?", type=Path, default=folder, help="default: its folder")
    parser.add_argument(
        "--plugin-lib",
        type=Path,
        help=f"libstormrt_plugins.so for this machine; else it is compiled from "
        f"{PLUGIN_SOURCES_NAME} by nvcc and g++ where the graph has plugins",
    )
    parser.add_argument(
        "--runtime", choices=("tensorrt", "tensorrt_rtx"), help="default: the bundle's"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args(arguments)


def _run(folder: Path, runtime: str | None) -> DeviceReport:
    bundle = read_manifest(folder)
    if bundle.plugins and PLUGIN_SOURCES_NAME not in [file.name for file in bundle.files]:
        # Even a library that is named is checked against them.
        raise EnvironmentMissingError(
            "the bundle has no sources of its graph's plugins",
            where=str(folder),
            expected=PLUGIN_SOURCES_NAME,
            fix="make the bundle again, or build it with stormrt itself",
        )
    progress = _Progress()
    options = PhaseOptions(
        made_by=f"{SCRIPT_NAME}, stormrt {stormrt.__version__}",
        command=bundle_command("python3", Path(folder.resolve().name) / SCRIPT_NAME),
        runtime=runtime,
        on_progress=progress,
        on_stage=lambda text: _say(f"{text} ..."),
    )
    return run_device_phase(bundle, options)


class _Progress:
    """A line for each tenth of the builder's outermost phase."""

    def __init__(self) -> None:
        self._phase: str | None = None
        self._shown = -1
        self._started = time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._phase = self._phase or phase
        tenth = 10 * done // max(1, total)
        if phase == self._phase and tenth != self._shown:
            self._shown = tenth
            _say(f"  {10 * tenth}% ({time.monotonic() - self._started:.0f} s)")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _text(report: DeviceReport, folder: Path) -> str:
    lines = []
    for engine in report.engines:
        checked, timed = engine.validation, engine.benchmark
        size_mib = engine.file.size_bytes / 2**20
        lines += [
            (
                f"{engine.file.name}: {size_mib:.2f} MiB, {engine.precision}, {engine.runtime} "
                f"{engine.runtime_version}, built in {engine.build_s:g} s"
            ),
            f"  against PyTorch: {checked.status}"
            + (f", relative L2 {checked.metrics.rel_l2:.2e}" if checked.metrics else "")
            + (f": {checked.reason}" if checked.reason else ""),
        ]
        if timed.engine is None or timed.call is None:
            lines.append(f"  latency: not run: {timed.reason}")
            continue
        graph = "CUDA graph" if timed.cuda_graph else timed.reason
        lines += [
            (
                f"  latency of {timed.calls} calls, {graph}: p50 {timed.engine.p50_ms:g} ms, p90 "
                f"{timed.engine.p90_ms:g}, p99 {timed.engine.p99_ms:g}, mean "
                f"{timed.engine.mean_ms:g}; with copies p50 {timed.call.p50_ms:g} ms"
            )
        ]
        if timed.before is not None:
            lines.append(
                f"  power mode {timed.before.power_mode}, GPU clock "
                f"{_number(timed.before.gpu_clock_mhz)} MHz, {_number(timed.before.temperature_c)} "
                "degrees C"
            )
    return "\n".join([*lines, f"report: {folder / DEVICE_REPORT_NAME}", ""])


def _number(value: Number) -> str:
    return value if isinstance(value, str) else f"{value:g}"
