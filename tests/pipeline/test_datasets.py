# SPDX-License-Identifier: Apache-2.0
"""Labelled images of a folder and of an npz: the same images, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stormrt.errors import InputError
from stormrt.pipeline.datasets import FolderDataset, NpzDataset, open_dataset, spread
from tests.helpers.images import labelled, npz_arrays, write_folder, write_npz

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def images(rng):
    return labelled(rng)


def read(dataset):
    """Every image's bytes and class."""
    sources = (dataset.source(i) for i in range(len(dataset)))
    encoded = tuple(s if isinstance(s, bytes) else s.read_bytes() for s in sources)
    return encoded, tuple(dataset.label(i) for i in range(len(dataset)))


def test_a_folder_and_an_npz_of_the_same_images_are_the_same(images, tmp_path):
    folder = FolderDataset(write_folder(images, tmp_path / "folder"))
    npz = NpzDataset(write_npz(images, tmp_path / "data.npz"))
    assert folder.classes == npz.classes == images.classes
    assert read(folder) == read(npz) == (images.encoded, images.labels)
    assert folder.name(0) == "ant/0000.png"
    assert npz.name(9) == "test/9"
    assert npz.where == f"{tmp_path / 'data.npz'}, test"


class TestFolder:
    def test_images_may_lie_deeper_and_other_files_are_passed_over(self, images, tmp_path):
        folder = write_folder(images, tmp_path / "f")
        (folder / "bee" / "more").mkdir()
        (folder / "bee" / "0010.png").rename(folder / "bee" / "more" / "x.PNG")
        for name in ("notes.txt", "bee/notes.txt", ".hidden"):
            (folder / name).write_text("no image")
        (folder / ".cache").mkdir()
        found = FolderDataset(folder)
        assert found.classes == images.classes
        assert Counter(found.label(i) for i in range(len(found))) == Counter(images.labels)
        assert "bee/more/x.PNG" in {found.name(i) for i in range(len(found))}

    def test_a_class_may_have_no_image(self, images, tmp_path):
        folder = write_folder(images, tmp_path / "f")
        (folder / "bat").mkdir()
        found = FolderDataset(folder)
        assert found.classes == ("ant", "bat", "bee", "cat")
        assert {found.label(i) for i in range(len(found))} == {0, 2, 3}

    def test_what_is_no_data_set_is_refused(self, images, tmp_path):
        folder = write_folder(images, tmp_path / "f")
        for bad, words in (
            (folder / "none", "does not exist"),
            (folder / "ant", "9 images that lie in it directly"),
        ):
            with pytest.raises(InputError, match=words):
                FolderDataset(bad)
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="no subfolders"):
            FolderDataset(tmp_path / "empty")
        (tmp_path / "empty" / "ant").mkdir()
        with pytest.raises(InputError, match="no image in the data's folders"):
            FolderDataset(tmp_path / "empty")

    def test_a_folder_has_no_splits(self, images, tmp_path):
        folder = write_folder(images, tmp_path / "f")
        with pytest.raises(InputError, match="no splits") as refusal:
            open_dataset(folder, "train")
        assert str(folder / "train") in str(refusal.value)


class TestNpz:
    def test_each_split_is_read_alone(self, images, rng, tmp_path):
        other = labelled(rng, (1, 1, 1))
        arrays = {**npz_arrays(images, "train"), **npz_arrays(other, "test")}
        np.savez(tmp_path / "d.npz", **arrays)
        assert len(open_dataset(tmp_path / "d.npz")) == 3
        assert read(open_dataset(tmp_path / "d.npz", "train"))[0] == images.encoded

    def test_names_may_be_stored_as_bytes(self, images, tmp_path):
        arrays = npz_arrays(images)
        np.savez(tmp_path / "d.npz", **{**arrays, "classes": arrays["classes"].astype("S")})
        assert NpzDataset(tmp_path / "d.npz").classes == images.classes

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"classes": None}, "lack classes"),
            ({"test_offsets": None, "test_labels": None}, "lack test_offsets, test_labels"),
            ({"test_images": np.zeros((20, 32, 32, 3), np.uint8)}, "test_images has another form"),
            ({"test_images": np.zeros(20)}, "test_images has another form"),
            ({"test_labels": np.zeros(20)}, "test_labels has another form"),
            ({"classes": np.arange(3)}, "classes has another form"),
            ({"classes": np.array(["a", "b", "a"])}, "one name"),
            ({"classes": np.array(["a", "b"])}, "a label is no class"),
            ({"test_labels": np.array([-1] * 20)}, "a label is no class"),
            ({"test_labels": np.zeros(19, int)}, "do not fit"),
            ({"test_labels": np.zeros(0, int)}, "no image"),
            ({"test_offsets": np.zeros(21, int)}, "do not fit"),
            ({"test_offsets": np.zeros(0, int)}, "do not fit"),
            ({"test_offsets": np.arange(21)[::-1].copy()}, "do not fit"),
            ({"classes": np.array([object()])}, "could not be read"),
        ],
    )
    def test_another_layout_is_refused_with_the_right_one(self, images, tmp_path, changes, words):
        arrays = {**npz_arrays(images), **changes}
        np.savez(tmp_path / "d.npz", **{k: v for k, v in arrays.items() if v is not None})
        with pytest.raises(InputError, match=words) as refusal:
            NpzDataset(tmp_path / "d.npz")
        assert str(tmp_path / "d.npz") in str(refusal.value)

    @pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda _: b"", lambda _: b"x"])
    def test_a_damaged_file_is_refused(self, images, tmp_path, damage):
        path = write_npz(images, tmp_path / "d.npz")
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(InputError, match="could not be read"):
            open_dataset(path)

    def test_a_bare_array_and_a_missing_file_are_refused(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros(3))
        with pytest.raises(InputError, match="could not be read"):
            open_dataset(tmp_path / "a.npy")
        with pytest.raises(InputError, match="do not exist"):
            open_dataset(tmp_path / "none.npz")

    @pytest.mark.parametrize(
        ("name", "classes", "test", "train"),
        [("scenes128.npz", 6, 3_000, 14_039), ("cifar10.npz", 10, 10_000, 50_000)],
    )
    def test_the_projects_own_data_are_read(self, name, classes, test, train):
        if not (DATA / name).is_file():
            pytest.skip(f"{DATA / name} is not there: the data do not come with the project")
        for split, images in (("test", test), ("train", train)):
            found = open_dataset(DATA / name, split)
            assert len(found.classes) == classes
            assert len(found) == images
            assert {found.label(i) for i in range(images)} == set(range(classes))


class TestSpread:
    def test_without_a_limit_or_below_it_are_all(self):
        for limit in (None, 7, 8):
            assert list(spread(7, limit)) == list(range(7))

    @pytest.mark.parametrize(("images", "limit"), [(7, 1), (7, 6), (1000, 3), (10_000, 9_999)])
    def test_a_limit_takes_images_evenly_in_order(self, images, limit):
        found = list(spread(images, limit))
        assert len(found) == limit
        assert found[0] == 0
        assert found[-1] < images
        steps = np.diff(found)
        assert all(images // limit <= step <= images / limit + 1 for step in steps)
