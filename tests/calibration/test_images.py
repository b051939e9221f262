# SPDX-License-Identifier: Apache-2.0
"""Which images are chosen, that names and listings do not count, and what is refused."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest

from stormrt.calibration.images import NO_CONTRAST, choose_images
from stormrt.errors import InputError
from stormrt.pipeline.photographs import preprocess_labelled
from tests.helpers.images import Labelled, encode, labelled, npz_arrays, write_folder, write_npz

SIDE = 32
BLACK = encode(np.zeros((SIDE, SIDE, 3), np.uint8))


@pytest.fixture
def images(rng) -> Labelled:
    return labelled(rng, (15, 12, 13))


def sha256(encoded: bytes) -> str:
    return hashlib.sha256(encoded).hexdigest()


def choose(*data, **options):
    return choose_images(data, SIDE, SIDE, **options)


def digests(chosen) -> list[str]:
    return [image.sha256 for image in chosen.images]


class TestChoice:
    def test_every_image_has_its_name_and_digest_and_what_the_model_takes(self, images, tmp_path):
        folder = write_folder(images, tmp_path / "data")
        chosen = choose(folder, wanted=100)
        assert len(chosen.images) == chosen.available == 40
        by_name = {image.name: image.sha256 for image in chosen.images}
        for path in folder.rglob("*.png"):
            assert by_name[path.relative_to(folder).as_posix()] == sha256(path.read_bytes())
        assert chosen.skipped == ()
        for index in (0, 7, 39):
            path = folder / chosen.images[index].name
            expected = preprocess_labelled(path, "", SIDE, SIDE)
            np.testing.assert_array_equal(chosen.load(index), expected)

    def test_neither_names_nor_the_layout_count(self, images, tmp_path, rng):
        folder = write_folder(images, tmp_path / "folder")
        flat = tmp_path / "flat"
        flat.mkdir()
        for index, i in enumerate(rng.permutation(40)):
            (flat / f"{index}.png").write_bytes(images.encoded[i])
        npz = write_npz(images, tmp_path / "data.npz")
        chosen = choose(folder, wanted=11)
        assert len(chosen.images) == 11
        assert digests(chosen) == digests(choose(flat, wanted=11))
        assert digests(chosen) == digests(choose(npz, wanted=11))
        photographs = sorted(flat.iterdir(), reverse=True)
        assert digests(chosen) == digests(choose(*photographs, wanted=11))

    def test_a_larger_choice_begins_with_a_smaller_one_and_another_seed_chooses_others(
        self, images, tmp_path
    ):
        npz = write_npz(images, tmp_path / "data.npz")
        few, more = choose(npz, wanted=9), choose(npz, wanted=30)
        assert digests(few) == digests(more)[:9]
        other = choose(npz, wanted=9, seed=1)
        assert digests(other) != digests(few)
        assert digests(other) != [sha256(e) for e in images.encoded[:9]]

    def test_classes_come_in_about_their_share(self, rng, tmp_path):
        images = labelled(rng, (300, 300), (32, 32), ("ant", "bee"))
        chosen = choose(write_folder(images, tmp_path / "data"), wanted=200)
        ants = sum(image.name.startswith("ant/") for image in chosen.images)
        assert 60 <= ants <= 140

    def test_copies_of_an_image_count_once(self, images, tmp_path):
        folder = write_folder(images, tmp_path / "data")
        shutil.copytree(folder / "ant", folder / "a copy of ant")
        chosen = choose(folder, wanted=100)
        assert chosen.available == len(chosen.images) == 40
        assert sum(image.name.startswith("a copy of ant/") for image in chosen.images) == 15
        listed = sorted(folder.rglob("*.png"))
        assert choose(*listed).images == choose(*reversed(listed)).images

    def test_each_step_is_told(self, images, tmp_path):
        told = []
        choose(
            write_npz(images, tmp_path / "data.npz"),
            wanted=3,
            on_image=lambda *event: told.append(event),
        )
        assert told[39] == ("hashing images", 40, 40)
        assert told[40:] == [("checking images", n, 3) for n in (1, 2, 3)]


class TestSplits:
    @pytest.fixture
    def parts(self, rng, tmp_path):
        """An npz and a folder of the same two splits."""
        train, test = labelled(rng, (4, 4, 4)), labelled(rng, (2, 2, 2))
        np.savez(tmp_path / "d.npz", **npz_arrays(train, "train"), **{
            name: array for name, array in npz_arrays(test).items() if name != "classes"
        })  # fmt: skip
        for name, part in (("train", train), ("test", test)):
            write_folder(part, tmp_path / "folder" / name)
        return tmp_path / "d.npz", tmp_path / "folder"

    def test_what_is_tested_on_is_not_calibrated_on(self, parts):
        npz, folder = (choose(data) for data in parts)
        assert len(npz.images) == len(folder.images) == 12
        assert all(image.name.startswith("train/") for image in (*npz.images, *folder.images))
        assert npz.where.endswith(", train")

    def test_it_is_where_it_is_asked_for(self, parts):
        for data in parts:
            chosen = choose(data, split="test")
            assert len(chosen.images) == 6
            assert all(image.name.startswith("test/") for image in chosen.images)

    def test_it_is_where_it_is_all_there_is(self, images, tmp_path):
        assert choose(write_npz(images, tmp_path / "d.npz")).where.endswith(", test")
        write_folder(images, tmp_path / "folder" / "test")
        assert len(choose(tmp_path / "folder").images) == 40

    def test_a_class_may_be_called_train(self, rng, tmp_path):
        images = labelled(rng, (3, 3), classes=("train", "ship"))
        assert len(choose(write_folder(images, tmp_path / "data")).images) == 6

    def test_a_split_that_is_not_there_is_refused(self, parts, images, tmp_path):
        with pytest.raises(InputError, match="lack val_images"):
            choose(parts[0], split="val")
        with pytest.raises(InputError, match="no such split"):
            choose(parts[1], split="val")
        (tmp_path / "p.png").write_bytes(images.encoded[0])
        with pytest.raises(InputError, match="photographs have no splits"):
            choose(tmp_path / "p.png", split="train")


class TestUnusableImages:
    @pytest.fixture(params=["no image", "cut", "empty", "black"])
    def bad(self, request, images) -> bytes:
        cut = images.encoded[0][: len(images.encoded[0]) // 2]
        return {"no image": b"no image", "cut": cut, "empty": b"", "black": BLACK}[request.param]

    def test_one_among_many_is_named_and_the_next_takes_its_place(self, images, bad, tmp_path):
        whole = digests(choose(write_npz(images, tmp_path / "whole.npz"), wanted=30))
        changed = images.replaced({5: bad})
        data = write_npz(changed, tmp_path / "data.npz")
        chosen = choose(data, wanted=100)
        assert [s.name for s in chosen.skipped] == ["test/5"]
        assert chosen.skipped[0].reason
        assert (chosen.skipped[0].reason == NO_CONTRAST) == (bad == BLACK)
        assert len(chosen.images) == 39
        assert sha256(bad) not in digests(chosen)
        # Asked for fewer, the choice is whole, whether the bad one came up or not.
        chosen = choose(data, wanted=30)
        assert len(chosen.images) == 30
        assert set(digests(chosen)) <= {sha256(e) for e in images.encoded}
        assert len(set(digests(chosen)) & set(whole)) >= 29

    def test_more_than_five_percent_are_refused_with_their_names(self, images, tmp_path):
        bad = {i: f"no image {i}".encode() for i in (3, 17, 30)}
        write_npz(images.replaced(bad), tmp_path / "data.npz")
        with pytest.raises(InputError, match="more than 5% of the 40 images") as refusal:
            choose(tmp_path / "data.npz")
        assert all(name in str(refusal.value) for name in ("test/3:", "test/17:", "test/30:"))
        del bad[3]
        chosen = choose(write_npz(images.replaced(bad), tmp_path / "data.npz"))
        assert (len(chosen.images), len(chosen.skipped)) == (38, 2)

    def test_images_without_any_contrast_are_refused_as_that(self, tmp_path):
        for shade in range(30):
            pixels = np.full((SIDE, SIDE, 3), shade, np.uint8)
            (tmp_path / f"{shade}.png").write_bytes(encode(pixels))
        with pytest.raises(InputError, match="no contrast") as refusal:
            choose(tmp_path, wanted=20)
        assert "of one colour" in str(refusal.value)
        with pytest.raises(InputError, match="no contrast"):
            choose(tmp_path)

    def test_a_single_grey_level_is_contrast(self, tmp_path):
        pixels = np.full((SIDE, SIDE, 3), 100, np.uint8)
        pixels[3, 4, 1] = 101
        (tmp_path / "a.png").write_bytes(encode(pixels))
        assert len(choose(tmp_path).images) == 1

    def test_a_file_that_cannot_be_opened_is_one_of_them(self, images, tmp_path):
        folder = write_folder(images, tmp_path / "data")
        (folder / "ant" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        chosen = choose(folder)
        assert [s.name for s in chosen.skipped] == ["ant/gone.png"]


class TestRefusals:
    def test_small_images_are_refused_and_never_enlarged(self, images, rng, tmp_path):
        small = encode(rng.integers(0, 255, (40, 36, 3), dtype=np.uint8))
        smallest = encode(rng.integers(0, 255, (64, 33, 3), dtype=np.uint8))
        big = labelled(rng, (3, 3, 3), (64, 64)).replaced({2: small, 4: smallest})
        data = write_npz(big, tmp_path / "data.npz")
        with pytest.raises(InputError, match="smaller than the model's input") as refusal:
            choose_images([data], 64, 64)
        text = str(refusal.value)
        assert "test/4, the smallest of 2 such" in text
        assert "64x33 pixels" in text
        assert "--size 33" in text

    def test_data_that_are_not_there(self, images, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "hidden" / ".git").mkdir(parents=True)
        (tmp_path / "hidden" / ".git" / "a.png").write_bytes(images.encoded[0])
        (tmp_path / "bad.npz").write_bytes(b"no npz")
        for data, words in (
            ([tmp_path / "none"], "do not exist"),
            ([tmp_path / "none.npz"], "do not exist"),
            ([tmp_path / "empty"], "holds no photographs"),
            ([tmp_path / "hidden"], "hidden files alone"),
            ([tmp_path / "bad.npz"], "could not be read"),
            ([], "no images"),
        ):
            with pytest.raises(InputError, match=words):
                choose(*data)

    def test_two_data_sets_at_once(self, images, tmp_path):
        folder = write_folder(images, tmp_path / "data")
        npz = write_npz(images, tmp_path / "d.npz")
        for data in ([folder, folder], [npz, npz], [folder / "ant" / "0000.png", npz]):
            with pytest.raises(InputError, match="several data sets"):
                choose(*data)

    def test_a_choice_of_none(self, images, tmp_path):
        with pytest.raises(InputError, match="there must be an image"):
            choose(write_npz(images, tmp_path / "d.npz"), wanted=0)
