# SPDX-License-Identifier: Apache-2.0
"""Crops to calibrate on are distinct, of their size, and the same each time."""

from __future__ import annotations

from PIL import Image

from benchmarks.photograph_crops import write_crops


def test_crops_are_distinct_of_their_size_and_the_same_each_time(tmp_path):
    for name in ("first", "second"):
        write_crops(tmp_path / name, 5, 96)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("first", "second")
    )
    assert first == second
    assert len(set(first.values())) == 5
    assert all(Image.open(tmp_path / "first" / name).size == (96, 96) for name in first)
