# SPDX-License-Identifier: Apache-2.0
"""Reads reports, whichever they are: of a workstation's build or of a device's.

``device.report`` and ``schema`` define them; pydantic checks both.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from stormrt.errors import InputError
from stormrt.pipeline.device.names import DEVICE_REPORT_NAME
from stormrt.pipeline.device.report import KIND, DeviceReport, to_json
from stormrt.pipeline.schema import REPORT_JSON_NAME, ValidationReport
from stormrt.reading import read_small


@cache
def _adapter() -> TypeAdapter[DeviceReport]:
    return TypeAdapter(DeviceReport)


def read_device_report(path: Path) -> DeviceReport:
    """Read and check a ``device_report.json``.

    Raises:
        InputError: The file is missing, damaged, of another schema, or has unknown keys.
    """
    try:
        return _adapter().validate_json(_bytes(path))
    except ValidationError as error:
        problems = "\n            ".join(
            f"{'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']}"
            for e in error.errors(include_url=False)[:5]
        )
        raise InputError(
            "the device's report is damaged or of another version",
            where=str(path),
            got=problems,
            fix="build the bundle again on the device",
        ) from error


def read_reports(path: Path) -> tuple[ValidationReport | DeviceReport, ...]:
    """Read the reports of a path.

    Args:
        path: A ``report.json``, a ``device_report.json``, or a folder with one or both.

    Raises:
        InputError: There is none, or it is damaged.
    """
    if path.is_dir():
        found = [p for p in (path / REPORT_JSON_NAME, path / DEVICE_REPORT_NAME) if p.is_file()]
        if not found:
            raise InputError(
                "the folder has no report",
                where=str(path),
                expected=f"{REPORT_JSON_NAME} or {DEVICE_REPORT_NAME}",
                fix="point at an output folder of `stormrt build`",
            )
        return tuple(report for file in found for report in read_reports(file))
    return (read_device_report(path) if _is_device_report(path) else ValidationReport.read(path),)


def to_json_value(report: DeviceReport) -> JsonValue:
    """What a program reads from a device's report."""
    value: JsonValue = json.loads(to_json(report))
    return value


def _is_device_report(path: Path) -> bool:
    try:
        raw = json.loads(_bytes(path))
    except (ValueError, RecursionError):  # the schema says better what is wrong
        return path.name == DEVICE_REPORT_NAME
    return isinstance(raw, dict) and raw.get("kind") == KIND


def _bytes(path: Path) -> bytes:
    try:
        return read_small(path)
    except OSError as error:
        raise InputError(
            "the report could not be read",
            where=str(path),
            got=error.strerror or str(error),
            fix="point at a report.json or device_report.json, or at its folder",
        ) from error
