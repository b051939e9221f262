# SPDX-License-Identifier: Apache-2.0
"""Channel by channel, over any batches, in any order; and the file that keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stormrt.calibration.statistics import (
    NotFiniteError,
    Statistics,
    load_statistics,
    save_statistics,
)
from stormrt.errors import InputError


def equal(a: Statistics, b: Statistics) -> None:
    """Counts and largest values to the bit; sums up to the order of the additions."""
    assert set(a.tensors) == set(b.tensors)
    assert sorted(a.images) == sorted(b.images)
    for name, one in a.tensors.items():
        other = b.tensors[name]
        assert one.histogram.exponent == other.histogram.exponent
        np.testing.assert_array_equal(one.histogram.counts, other.histogram.counts)
        np.testing.assert_array_equal(one.channel_largest, other.channel_largest)
        assert one.positions == other.positions
        np.testing.assert_allclose(one.channel_sum, other.channel_sum, rtol=1e-12, atol=1e-9)


@pytest.fixture
def maps(rng) -> dict[str, np.ndarray]:
    """Two tensors of nine images, whose channels differ."""
    scale = np.exp(rng.normal(0, 2, 5))
    return {
        "map": (rng.normal(1, 1, (9, 5, 4, 3)) * scale[:, None, None]).astype(np.float32),
        "vector": rng.normal(size=(9, 7)).astype(np.float32),
    }


def of(maps: dict[str, np.ndarray], *batches: list[int]) -> Statistics:
    statistics = Statistics()
    for batch in batches:
        for name, values in maps.items() if batch else ():
            statistics.observe(name, values[batch])
        statistics.images += [f"image {i}" for i in batch]
    return statistics


def test_each_channel_has_the_largest_value_and_the_mean_of_numpy(maps):
    seen = of(maps, [0, 1, 2], [3], [4, 5, 6, 7, 8]).tensors
    for name, values in maps.items():
        axes = (0, *range(2, values.ndim))
        np.testing.assert_array_equal(seen[name].channel_largest, np.abs(values).max(axes))
        np.testing.assert_allclose(
            seen[name].mean, values.astype(np.float64).mean(axes), rtol=1e-12, atol=1e-12
        )
        assert seen[name].largest == np.abs(values).max()
        assert seen[name].histogram.total == values.size
        assert seen[name].positions * values.shape[1] == values.size


def test_neither_batches_nor_their_order_matter(maps, rng):
    one_by_one = of(maps, *[[i] for i in range(9)])
    equal(one_by_one, of(maps, list(range(9))))
    equal(one_by_one, of(maps, *[[int(i)] for i in rng.permutation(9)]))


def test_merging_is_observing_all(maps):
    whole = of(maps, list(range(9)))
    for cut in (0, 1, 5, 9):
        first, second = of(maps, list(range(cut))), of(maps, list(range(cut, 9)))
        first.merge(second)
        equal(first, whole)


def test_what_is_observed_is_not_changed(maps):
    before = maps["map"].copy()
    of(maps, list(range(9)))
    np.testing.assert_array_equal(maps["map"], before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_channel_and_leave_nothing_behind(maps, bad):
    statistics = of(maps, [0])
    before = of(maps, [0])
    worse = maps["map"].copy()
    worse[3, 2, 1, 1] = bad
    with pytest.raises(NotFiniteError) as refusal:
        statistics.observe("map", worse)
    assert refusal.value.channel == 2
    equal(statistics, before)


class TestFile:
    def test_what_was_written_is_read_and_can_go_on(self, maps, tmp_path):
        first = of(maps, [0, 1, 2, 3])
        save_statistics(first, tmp_path / "s.npz", "key")
        found = load_statistics(tmp_path / "s.npz", "key")
        assert found is not None
        equal(found, first)
        assert found.images == first.images
        found.merge(of(maps, [4, 5, 6, 7, 8]))
        equal(found, of(maps, list(range(9))))
        equal(load_statistics(tmp_path / "s.npz", "key"), first)

    def test_statistics_of_nothing_are_kept_too(self, tmp_path):
        save_statistics(Statistics(), tmp_path / "s.npz", "key")
        found = load_statistics(tmp_path / "s.npz", "key")
        assert found == Statistics()

    def test_what_is_missing_damaged_or_of_another_key_is_as_good_as_nothing(self, maps, tmp_path):
        path = tmp_path / "s.npz"
        assert load_statistics(path, "key") is None
        save_statistics(of(maps, [0]), path, "key")
        assert load_statistics(path, "another") is None
        whole = path.read_bytes()
        for damaged in (b"", b"no npz", whole[: len(whole) // 2], whole[:200] + whole[300:]):
            path.write_bytes(damaged)
            assert load_statistics(path, "key") is None
        np.savez(path, key=np.array("key"))
        assert load_statistics(path, "key") is None

    def test_a_folder_that_cannot_be_written_is_refused(self, maps):
        with pytest.raises(InputError, match="could not write"):
            save_statistics(of(maps, [0]), Path("/proc/stormrt/s.npz"), "key")
