# SPDX-License-Identifier: Apache-2.0
"""Crops of the photographs that come with scikit-image and scikit-learn: images to calibrate on.

    python -m benchmarks.photograph_crops FOLDER

For what a calibration costs in time and memory (docs/int8.md); they say nothing about accuracy.
The same ones each time.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from PIL import Image

from stormrt.pipeline.photographs import packaged_photographs

LEAST_DEVIATION = 10
"""Of a crop's values, 0 to 255: flat ones are left out."""


def write_crops(out: Path, count: int, side: int) -> None:
    """Write distinct square crops as JPEG.

    Args:
        out: Folder, made if it is not there.
        count: How many.
        side: In pixels.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = packaged_photographs()
    opened = [(path.stem, Image.open(path).convert("RGB")) for path in paths]
    photographs = [(name, image) for name, image in opened if min(image.size) >= side]
    generator, seen = random.Random(0), set[tuple[str, int, int]]()
    while len(seen) < count:
        name, image = photographs[len(seen) % len(photographs)]
        x = generator.randint(0, image.width - side)
        y = generator.randint(0, image.height - side)
        crop = image.crop((x, y, x + side, y + side))
        if (name, x, y) in seen or np.asarray(crop).std() < LEAST_DEVIATION:
            continue
        crop.save(out / f"{len(seen):03d}_{name}_{x}_{y}.jpg", quality=95)
        seen.add((name, x, y))


if __name__ == "__main__":
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--side", type=int, default=224, help="pixels")
    arguments = parser.parse_args()
    write_crops(arguments.out, arguments.count, arguments.side)
