# SPDX-License-Identifier: Apache-2.0
"""Photographs and golden data."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from stormrt.errors import EnvironmentMissingError, InputError
from stormrt.pipeline import photographs as module
from stormrt.pipeline.golden import make_golden, read_golden
from stormrt.pipeline.photographs import (
    MEAN,
    STD,
    UnreadableImageError,
    check_photographs,
    find_photographs,
    packaged_photographs,
    preprocess,
    preprocess_all,
    preprocess_labelled,
)
from tests.pipeline.support import model_spec, relative, run_torch


def save(path, pixels, mode="RGB"):
    Image.fromarray(np.asarray(pixels, np.uint8), mode=None).convert(mode).save(path)
    return path


def test_eighteen_photographs_come_with_dependencies():
    found = packaged_photographs()
    assert len(found) == 18
    assert len({p.name for p in found}) == 18
    check_photographs(found)


def test_a_missing_package_of_photographs_is_told_with_a_remedy(monkeypatch):
    monkeypatch.setattr(module, "_PACKAGED", {"no_such_package": ("data", ("a.png",))})
    with pytest.raises(EnvironmentMissingError, match="not installed") as caught:
        packaged_photographs()
    assert "--photos" in (caught.value.fix or "")


def test_a_missing_file_of_a_package_is_named(monkeypatch):
    monkeypatch.setattr(module, "_PACKAGED", {"skimage": ("data", ("no_such_cat.png",))})
    with pytest.raises(EnvironmentMissingError, match=r"no_such_cat\.png"):
        packaged_photographs()


class TestFinding:
    def test_a_folder_gives_its_images_sorted_below_it_too(self, tmp_path):
        (tmp_path / "sub").mkdir()
        for name in ("b.PNG", "a.jpg", "sub/c.webp", "notes.txt"):
            (tmp_path / name).write_text("")
        found = find_photographs(tmp_path)
        assert [str(p.relative_to(tmp_path)) for p in found] == ["a.jpg", "b.PNG", "sub/c.webp"]

    def test_a_file_gives_itself(self, tmp_path):
        (tmp_path / "x.jpg").write_text("")
        assert find_photographs(tmp_path / "x.jpg") == (tmp_path / "x.jpg",)

    def test_nothing_and_an_empty_folder_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="do not exist"):
            find_photographs(tmp_path / "none")
        with pytest.raises(InputError, match="holds no photographs"):
            find_photographs(tmp_path)


class TestPreprocessing:
    def test_a_grey_image_is_normalised_by_channel(self, tmp_path):
        path = save(tmp_path / "g.png", np.full((40, 40, 3), 128))
        found = preprocess(path, 32, 48)
        assert found.shape == (3, 32, 48)
        assert found.dtype == np.float32
        for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
            np.testing.assert_allclose(found[channel], (128 / 255 - mean) / std, rtol=1e-5)

    @pytest.mark.parametrize("size", [(10, 400), (400, 10), (3, 3), (37, 53)])
    def test_images_of_any_shape_fill_the_input(self, tmp_path, size):
        path = save(tmp_path / "i.png", np.full((*size, 3), 255))
        found = preprocess(path, 64, 48)
        expected = (1 - np.array(MEAN)) / np.array(STD)
        np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None], found.shape),
                                   rtol=1e-5)  # fmt: skip

    def test_the_centre_is_kept_and_the_sides_are_cut(self, tmp_path):
        pixels = np.zeros((100, 300, 3))
        pixels[:, 100:200] = 255
        found = preprocess(save(tmp_path / "i.png", pixels), 32, 32)
        assert (found > 1.5).all(), "the white middle third is all that is left"

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
    def test_other_colour_modes_become_rgb(self, tmp_path, mode):
        suffix = "tif" if mode == "CMYK" else "png"
        path = save(tmp_path / f"i.{suffix}", np.full((20, 20, 3), 255), mode)
        assert preprocess(path, 32, 32).shape == (3, 32, 32)

    def test_all_are_stacked_in_order(self, photographs):
        paths = find_photographs(photographs)
        found = preprocess_all(paths, 32, 48)
        assert found.shape == (len(paths), 3, 32, 48)
        np.testing.assert_array_equal(found[1], preprocess(paths[1], 32, 48))

    def test_a_text_file_is_refused_before_and_while_decoding(self, tmp_path):
        path = tmp_path / "photo.jpg"
        path.write_text("not a photograph")
        for refuse in (lambda: check_photographs([path]), lambda: preprocess(path, 32, 32)):
            with pytest.raises(InputError, match="photograph could not be read") as caught:
                refuse()
            assert caught.value.where == str(path)

    def test_an_image_that_was_cut_off_is_refused(self, tmp_path, rng):
        path = save(tmp_path / "i.png", rng.integers(0, 255, (64, 64, 3)))
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(InputError, match="photograph could not be read"):
            preprocess(path, 32, 32)

    def test_an_image_that_would_fill_the_memory_is_refused(self, tmp_path, monkeypatch):
        path = save(tmp_path / "i.png", np.zeros((64, 64, 3)))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(InputError, match="could not be read"):
            preprocess(path, 32, 32)


class TestPreprocessingWithoutEnlarging:
    def test_an_image_of_the_inputs_size_passes_unchanged(self, tmp_path, rng):
        pixels = rng.integers(0, 256, (32, 48, 3))
        found = preprocess_labelled(save(tmp_path / "i.png", pixels), "i", 32, 48)
        expected = (pixels / 255 - np.array(MEAN)) / np.array(STD)
        np.testing.assert_allclose(found, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
        assert found.flags.c_contiguous

    @pytest.mark.parametrize("size", [(36, 36), (34, 90), (32, 33)])
    def test_up_to_the_margin_an_image_is_only_cut(self, tmp_path, rng, size):
        pixels = rng.integers(0, 256, (*size, 3))
        found = preprocess_labelled(save(tmp_path / "i.png", pixels), "i", 32, 32)
        top, left = (size[0] - 32) // 2, (size[1] - 32) // 2
        centre = save(tmp_path / "c.png", pixels[top : top + 32, left : left + 32])
        np.testing.assert_array_equal(found, preprocess_labelled(centre, "c", 32, 32))

    @pytest.mark.parametrize("size", [(37, 37), (100, 80), (37, 300)])
    def test_beyond_the_margin_the_rule_is_that_of_validation(self, tmp_path, rng, size):
        path = save(tmp_path / "i.png", rng.integers(0, 256, (*size, 3)))
        found = preprocess_labelled(path, "i", 32, 32)
        np.testing.assert_array_equal(found, preprocess(path, 32, 32))

    def test_bytes_are_as_good_as_a_file(self, tmp_path, rng):
        path = save(tmp_path / "i.png", rng.integers(0, 256, (40, 40, 3)))
        np.testing.assert_array_equal(
            preprocess_labelled(path.read_bytes(), "i", 32, 32),
            preprocess_labelled(path, "i", 32, 32),
        )

    @pytest.mark.parametrize(
        ("size", "fix"), [((32, 47), "--size 32"), ((31, 90), "give larger images")]
    )
    def test_an_image_that_is_too_small_is_refused_with_the_way_out(self, tmp_path, size, fix):
        path = save(tmp_path / "i.png", np.zeros((*size, 3)))
        with pytest.raises(InputError, match="never enlarged") as caught:
            preprocess_labelled(path, "i.png", 48, 48)
        assert not isinstance(caught.value, UnreadableImageError)
        assert caught.value.got == f"{size[0]}x{size[1]} pixels (height x width)"
        assert caught.value.fix is not None
        assert caught.value.fix.endswith(fix)

    @pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged TIFF files
    def test_whatever_bytes_do_they_are_one_error_without_addresses(self, tmp_path, rng):
        """Images cut off, and with bytes changed: read, or told as unreadable; nothing else."""
        errors: list[InputError] = []
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, kind)
            whole = buffer.getvalue()
            for _ in range(40):
                damaged = bytearray(whole[: rng.integers(len(whole))])
                for place in rng.integers(0, max(len(damaged), 1), 3):
                    damaged[place : place + 1] = rng.bytes(1) if damaged else b""
                try:
                    preprocess_labelled(bytes(damaged), "i", 32, 32)
                except InputError as error:
                    errors.append(error)
        unreadable = [e for e in errors if isinstance(e, UnreadableImageError)]
        assert len(unreadable) > 100
        assert all(e.got and " at 0x" not in e.got for e in unreadable)
        # Where a header's size was changed.
        assert all("never enlarged" in e.what for e in errors if e not in unreadable)


class TestGolden:
    def test_the_file_holds_inputs_outputs_and_names(self, photographs, tmp_path):
        spec = model_spec(height=32, width=48)
        paths = find_photographs(photographs)
        made = make_golden(spec, paths, tmp_path / "golden.npz")
        images, logits, sources = read_golden(tmp_path / "golden.npz")
        assert made.images == len(images) == len(paths) == 4
        assert made.sources == sources == tuple(p.name for p in paths)
        np.testing.assert_array_equal(images, preprocess_all(paths, 32, 48))
        assert relative(logits, run_torch(spec, images)) < 1e-6

    def test_the_same_photographs_give_the_same_bytes(self, photographs, tmp_path):
        spec, paths = model_spec(height=32, width=32), find_photographs(photographs)[:2]
        first = make_golden(spec, paths, tmp_path / "a.npz")
        second = make_golden(spec, paths, tmp_path / "b.npz")
        assert first.file.sha256 == second.file.sha256

    def test_weights_that_give_nan_are_refused_and_nothing_is_written(self, photographs, tmp_path):
        from stormrt.storm import build_vmamba

        weights = build_vmamba(model_spec().name, 7).state_dict()
        weights["classifier.head.bias"][0] = torch.nan
        torch.save(weights, tmp_path / "nan.pth")
        spec = model_spec(height=32, width=32, checkpoint=str(tmp_path / "nan.pth"))
        with pytest.raises(InputError, match="not finite") as caught:
            make_golden(spec, find_photographs(photographs)[:1], tmp_path / "golden.npz")
        assert caught.value.where == str(tmp_path / "nan.pth")
        assert not (tmp_path / "golden.npz").exists()

    @pytest.mark.parametrize("damage", [lambda _: b"", lambda b: b[: len(b) // 2], lambda _: b"no"])
    def test_a_damaged_file_is_refused(self, photographs, tmp_path, damage):
        path = tmp_path / "golden.npz"
        make_golden(model_spec(height=32, width=32), find_photographs(photographs)[:1], path)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(InputError, match="golden data could not be read") as caught:
            read_golden(path)
        assert caught.value.where == str(path)

    def test_a_missing_file_and_a_missing_array_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="could not be read"):
            read_golden(tmp_path / "none.npz")
        np.savez(tmp_path / "other.npz", images=np.zeros(3))
        with pytest.raises(InputError, match="logits"):
            read_golden(tmp_path / "other.npz")

    def test_pickled_objects_are_not_loaded(self, tmp_path):
        np.savez(
            tmp_path / "p.npz",
            images=np.array([object()]),
            logits=np.zeros(1),
            sources=np.array(["a"]),
        )
        with pytest.raises(InputError, match="could not be read"):
            read_golden(tmp_path / "p.npz")
