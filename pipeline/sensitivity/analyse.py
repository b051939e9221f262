# SPDX-License-Identifier: Apache-2.0
"""A ranking behind a calibration: the images chosen again, layers ranked, a budget looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stormrt.calibration.images import choose_images
from stormrt.calibration.table import CalibrationTable
from stormrt.errors import InputError
from stormrt.locking import folder_lock
from stormrt.pipeline.calibrate import CalibrateRequest, work_folder
from stormrt.pipeline.files import write_text
from stormrt.pipeline.graph_stages import EXPORTED_NAME, workstation_packages
from stormrt.pipeline.schema import SensitivityReport
from stormrt.pipeline.sensitivity.bench import Subject
from stormrt.pipeline.sensitivity.mixed import mixed_precision
from stormrt.pipeline.sensitivity.options import SensitivityOptions, check_options, report_path
from stormrt.pipeline.sensitivity.ranking import rank_layers

if TYPE_CHECKING:
    from stormrt.calibration.images import ImageEvent


def analyse(
    request: CalibrateRequest,
    table: CalibrationTable,
    options: SensitivityOptions,
    *,
    on_step: ImageEvent = lambda *_: None,
) -> SensitivityReport:
    """Rank the layers behind a table that ``calibrate`` has just made, and write the report.

    Args:
        request: What ``calibrate`` was asked for.
        table: What it made.
        options: How layers are ranked.
        on_step: Told of each layer and trial.

    Raises:
        InputError: Bad options; images that are not the table's; labelled images of other classes.
        EnvironmentMissingError: A package is missing.
    """
    check_options(options)
    work, spec = request.work or work_folder(request.out), table.model
    with folder_lock(work), workstation_packages():
        # A larger choice begins with a smaller one; unusable images were counted by ``calibrate``.
        wanted = min(options.images, len(table.images))
        chosen = choose_images(
            request.data,
            spec.height,
            spec.width,
            wanted=wanted,
            split=request.split,
            most_unusable=1.0,
            on_image=on_step,
        )
        if chosen.images != table.images[:wanted]:
            raise InputError(
                "the images have changed since the table was made",
                where=chosen.where,
                fix="run `stormrt calibrate` again",
            )
        pixels = np.stack([chosen.load(index) for index in range(wanted)])
        subject = Subject(work / EXPORTED_NAME, table, pixels, work, options.labelled)
        report = rank_layers(subject, options.extra, on_step=on_step)
        if options.budget is not None:
            report = mixed_precision(report, subject, options.budget, on_step=on_step)
    write_text(report_path(request.out), report.to_json())
    return report
