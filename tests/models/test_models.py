# SPDX-License-Identifier: Apache-2.0
"""Weights that come with the package, and the cards beside weights."""

from __future__ import annotations

import json

import pytest

from stormrt.errors import InputError
from stormrt.models import bundle, bundled, read_card, weights_path
from stormrt.storm.variants import VARIANTS


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty folder in the place of the package's."""
    monkeypatch.setattr(bundle, "_FOLDER", tmp_path)
    return tmp_path


def test_bundled_weights_are_named_by_their_model_and_found_by_that_name(models):
    assert bundled("vmamba_nano_scenes") is None
    (models / "vmamba_nano_scenes.safetensors").write_bytes(b"weights")
    assert bundled("vmamba_nano_scenes") == "bundled:vmamba_nano_scenes"
    assert bundled("vmamba_nano_cifar10") is None
    assert weights_path("bundled:vmamba_nano_scenes").read_bytes() == b"weights"


def test_any_other_checkpoint_is_a_path(tmp_path):
    assert weights_path(str(tmp_path / "w.pth")) == tmp_path / "w.pth"


@pytest.mark.parametrize("name", [n for n in VARIANTS if bundled(n)])
def test_bundled_weights_are_small_and_have_the_card_of_their_variant(name):
    from stormrt.pipeline.model_spec import card_of, resolve_spec

    path = weights_path(bundled(name))
    assert path.stat().st_size <= 8 * 2**20
    card = card_of(resolve_spec(name))
    assert card is not None
    assert card.sha256 is not None
    assert len(card.classes) == VARIANTS[name].num_classes


class TestCard:
    def write(self, folder, content):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "w.json").write_text(text)
        return folder / "w.safetensors"

    def test_names_are_read_and_the_rest_is_passed_over(self, tmp_path):
        path = self.write(tmp_path, {"classes": ["a", "b"], "sha256": "f00", "log": [1]})
        card = read_card(path, "f00")
        assert card is not None
        assert card.classes == ("a", "b")

    def test_no_file_and_a_file_of_something_else_are_no_card(self, tmp_path):
        assert read_card(tmp_path / "w.safetensors", "f00") is None
        for other in ({"hidden_size": 3}, [1, 2]):
            assert read_card(self.write(tmp_path, other), "f00") is None

    @pytest.mark.parametrize(
        "content", ["{", '{"classes": []}', '{"classes": [1]}', '{"classes": ["a", "a"]}', "\xff"]
    )
    def test_a_damaged_card_is_refused(self, tmp_path, content):
        with pytest.raises(InputError, match="class names beside") as refusal:
            read_card(self.write(tmp_path, content), "f00")
        assert str(tmp_path / "w.json") in str(refusal.value)

    def test_the_card_of_other_weights_is_refused(self, tmp_path):
        path = self.write(tmp_path, {"classes": ["a"], "sha256": "f00"})
        with pytest.raises(InputError, match="of other weights"):
            read_card(path, "bad")
