# SPDX-License-Identifier: Apache-2.0
"""npz files of strangers: what is read, and what is refused before it takes memory."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from stormrt.pipeline import npz_file
from stormrt.pipeline.npz_file import read_npz


@pytest.fixture
def arrays(rng):
    return {
        "numbers": rng.random((3, 4, 5), np.float32),
        "turned": np.asfortranarray(rng.random((3, 4))),
        "bytes": rng.integers(0, 256, 1000).astype(np.uint8),
        "words": np.array(["sea", "sand", "\N{SNOWMAN}"]),
        "scalar": np.array("key"),
        "empty": np.zeros((0, 7)),
        "large": rng.random(10).astype(">f8"),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, arrays, save):
    save(tmp_path / "a.npz", **arrays)
    found, there = read_npz(tmp_path / "a.npz")
    assert list(there) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_only_what_is_wanted_is_read(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    found, there = read_npz(tmp_path / "a.npz", ["words", "none"])
    assert list(found) == ["words"]
    assert set(there) == set(arrays)


def test_objects_are_refused_and_not_executed(tmp_path):
    np.savez(tmp_path / "a.npz", allow_pickle=True, bad=np.array([print], object), good=np.ones(2))
    with pytest.raises(ValueError, match="bad holds objects"):
        read_npz(tmp_path / "a.npz")
    assert read_npz(tmp_path / "a.npz", ["good"])[0]["good"].sum() == 2


def test_more_memory_than_the_file_is_worth_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(100_000))
    assert read_npz(tmp_path / "a.npz")[0]["a"].shape == (100_000,)
    monkeypatch.setattr(npz_file, "FREE_BYTES", 100_000)
    with pytest.raises(ValueError, match="would take more than"):
        read_npz(tmp_path / "a.npz")
    # What does not pack is worth its size.
    np.savez(tmp_path / "b.npz", a=np.arange(100_000))
    assert read_npz(tmp_path / "b.npz")[0]["a"][-1] == 99_999


@pytest.mark.parametrize("shape", ["(3,)", "(1000000000000,)", "(-2,)", "(2, 2)"])
def test_a_header_that_lies_is_refused(tmp_path, shape):
    file = io.BytesIO()
    np.save(file, np.zeros(2))
    lying = file.getvalue().replace(b"(2,), }", f"{shape}, }}".encode())
    lying = lying.replace(b" \n", b"\n") if len(lying) > len(file.getvalue()) else lying
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", lying)
    with pytest.raises(ValueError, match=r"another size|format|header"):
        read_npz(tmp_path / "a.npz")


def test_what_is_no_array_is_refused_where_it_is_wanted(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a", b"text")
        archive.writestr("b.npy", b"text")
    for name in "ab":
        with pytest.raises(ValueError, match=r"a is no array|magic"):
            read_npz(tmp_path / "a.npz", [name])
    assert read_npz(tmp_path / "a.npz", [])[0] == {}
