# SPDX-License-Identifier: Apache-2.0
"""`stormrt evaluate` and `stormrt classify`: that they count right, and what they refuse."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stormrt.models import bundle
from stormrt.pipeline.artifacts import ModelSpec
from stormrt.pipeline.preprocessing import MEAN, STD
from stormrt.storm import build_vmamba
from stormrt.storm.plan import StormPlan
from tests.helpers.images import Labelled, encode, labelled, npz_arrays, write_folder, write_npz
from tests.pipeline.support import SMALL, digest, run_stormrt, run_torch, small_variants

CARD = ("cat", "ant", "bee")
"""The model's own order of the classes, which is not the data's."""
DENSE = "keep=1,stage=2"
"""The small model's first stage has no block to reduce before."""
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint, with a card, that does not take all images for one class."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    with small_variants(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build_vmamba(SMALL, len(CARD))
        torch.nn.init.normal_(model.classifier.head.weight)
    save_file(model.state_dict(), path)
    card = {"classes": CARD, "sha256": digest(path), "seed": 0}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


@pytest.fixture
def images(rng) -> Labelled:
    return labelled(rng)


@pytest.fixture
def npz(images, tmp_path) -> Path:
    return write_npz(images, tmp_path / "data.npz")


@pytest.fixture
def evaluate(cli, weights):
    """Runs `stormrt evaluate` with the small model; None leaves an option out."""

    def run(data, *extra, **changes):
        values = {
            "model": SMALL,
            "size": 32,
            "checkpoint": weights,
            "data": data,
            "runtime": "torch",
            "storm": DENSE,
            **changes,
        }
        pairs = [(f"--{k.replace('_', '-')}", v) for k, v in values.items() if v is not None]
        return cli("evaluate", *(part for pair in pairs for part in pair), *extra)

    return run


def result(done) -> dict:
    assert done.code == 0, done.err
    return json.loads(done.out)


def refused(done, *words: str) -> None:
    """One message, with these words in it, and no traceback."""
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert done.err.count("error: ") == 1, done.err
    for word in words:
        assert word in done.err, f"{word!r} is not in: {done.err}"


def logits_of(encoded, weights) -> np.ndarray:
    """What the model makes of images of its input's size, without the pipeline's preprocessing."""
    pixels = [np.asarray(Image.open(io.BytesIO(e))) for e in encoded]
    inputs = (np.stack(pixels) / 255 - MEAN) / STD
    spec = ModelSpec(
        SMALL, len(CARD), str(weights), digest(weights), 0, 32, 32, 1, False, StormPlan()
    )
    return run_torch(spec, inputs.transpose(0, 3, 1, 2).astype(np.float32))


def confusion_of(images: Labelled, weights) -> list[list[int]]:
    """Counts by the names that the card gives, one image after the other."""
    table = [[0] * len(CARD) for _ in CARD]
    for label, row in zip(images.labels, logits_of(images.encoded, weights), strict=True):
        table[CARD.index(images.classes[label])][int(row.argmax())] += 1
    return table


class TestCounting:
    def test_the_counts_are_those_of_the_model_by_name(self, evaluate, images, npz, weights):
        found = result(evaluate(npz, "--json"))
        assert found["classes"] == list(CARD)
        assert found["confusion"] == confusion_of(images, weights)
        assert [sum(row) for row in found["confusion"]] == [7, 9, 4]
        assert found["images"] == 20
        correct = sum(found["confusion"][i][i] for i in range(3))
        assert found["correct"] == correct
        assert found["top1"] == correct / 20
        assert found["skipped"] == []
        predicted = [sum(column) for column in zip(*found["confusion"], strict=True)]
        assert sum(n > 0 for n in predicted) > 1, "a model of one answer would show nothing"

    def test_the_result_says_what_was_evaluated(self, evaluate, npz, weights):
        found = result(evaluate(npz, "--json", storm="keep=0.5,stage=2", precision="fp16"))
        assert set(found) == {
            "schema_version", "top1", "images", "correct", "classes", "confusion", "skipped",
            "data", "model", "plan", "weights", "precision", "runtime", "seconds", "versions",
        }  # fmt: skip
        assert found["model"]["name"] == SMALL
        assert found["plan"].startswith("stage 2 block")
        assert (found["precision"], found["runtime"]) == ("fp16", "torch")
        assert found["weights"] == f"w.safetensors, SHA-256 {digest(weights)}"
        assert found["data"] == f"{npz}, test"
        assert found["seconds"] > 0
        assert "torch" in {v["name"] for v in found["versions"]}

    def test_a_folder_an_npz_and_any_batch_give_the_same(self, evaluate, images, npz, tmp_path):
        folder = write_folder(images, tmp_path / "folder")
        alike = ("top1", "images", "classes", "confusion", "skipped")
        runs = [
            result(evaluate(data, "--json", batch=batch))
            for data, batch in ((npz, None), (folder, None), (npz, 1), (npz, 20), (npz, 64))
        ]
        assert len({json.dumps([run[k] for k in alike]) for run in runs}) == 1

    def test_onnxruntime_counts_as_pytorch_does_and_keeps_its_graphs(self, evaluate, npz, tmp_path):
        work = tmp_path / "work"
        in_torch = result(evaluate(npz, "--json", storm="keep=0.5,stage=2"))
        for said in ("done in", "skipped: its inputs have not changed"):
            done = evaluate(
                npz, "--json", storm="keep=0.5,stage=2", runtime="onnxruntime", work=work
            )
            found = result(done)
            assert found["runtime"] == "onnxruntime"
            assert found["confusion"] == in_torch["confusion"]
            assert done.err.count(said) == 3, done.err
        half = result(
            evaluate(
                npz, "--json", storm="keep=0.5,stage=2", runtime="onnxruntime", work=work,
                precision="fp16",
            )
        )  # fmt: skip
        assert half["images"] == 20

    def test_a_limit_takes_images_of_every_class_and_the_same_again(self, evaluate, npz):
        first, second = (result(evaluate(npz, "--json", limit=10)) for _ in range(2))
        assert first["images"] == 10
        assert first["confusion"] == second["confusion"]
        assert all(sum(row) >= 2 for row in first["confusion"])
        assert result(evaluate(npz, "--json", limit=1000))["images"] == 20

    def test_the_split_that_is_asked_for_is_taken(self, evaluate, images, rng, tmp_path):
        arrays = {**npz_arrays(images, "train"), **npz_arrays(labelled(rng, (1, 2, 1)))}
        np.savez(tmp_path / "d.npz", **arrays)
        assert result(evaluate(tmp_path / "d.npz", "--json"))["images"] == 4
        found = result(evaluate(tmp_path / "d.npz", "--json", split="train"))
        assert found["images"] == 20
        assert found["data"].endswith(", train")

    def test_classes_may_be_missing_from_the_data_where_a_card_names_them(
        self, evaluate, rng, tmp_path
    ):
        data = write_npz(labelled(rng, (3, 2), classes=("bee", "cat")), tmp_path / "d.npz")
        found = result(evaluate(data, "--json"))
        assert found["classes"] == list(CARD)
        assert [sum(row) for row in found["confusion"]] == [2, 0, 3]

    def test_larger_images_are_cut_to_their_centre_and_never_enlarged(
        self, evaluate, images, weights, tmp_path
    ):
        """Between the input's size and 256/224 of it only the margin goes."""
        larger = {}
        for index, encoded in enumerate(images.encoded):
            pixels = np.full((36, 34, 3), 255, np.uint8)
            pixels[2:34, 1:33] = np.asarray(Image.open(io.BytesIO(encoded)))
            larger[index] = encode(pixels)
        data = write_npz(images.replaced(larger), tmp_path / "d.npz")
        assert result(evaluate(data, "--json"))["confusion"] == confusion_of(images, weights)


class TestForPeople:
    def test_the_top1_is_first_and_the_table_has_every_class(self, evaluate, npz):
        done = evaluate(npz)
        assert done.code == 0, done.err
        assert done.out.startswith("top-1 ")
        assert all(name in done.out for name in CARD)
        assert "torch, fp32" in done.out

    def test_random_weights_are_said_to_be_random(self, evaluate, npz):
        done = evaluate(npz, "--json", checkpoint=None, classes=3)
        found = result(done)
        assert found["weights"] == "random, seed 0"
        assert found["classes"] == ["ant", "bee", "cat"]
        assert "the weights are random (seed 0): the classes mean nothing" in done.err

    def test_many_classes_are_left_to_json(self, evaluate, rng, tmp_path):
        names = [f"c{i:02}" for i in range(30)]
        data = write_npz(labelled(rng, [1] * 30, classes=names), tmp_path / "d.npz")
        done = evaluate(data, checkpoint=None, classes=30)
        assert "--json has the confusion matrix of the 30 classes" in done.out

    def test_names_are_not_read_as_markup(self, evaluate, rng, tmp_path):
        names = ("[red]a", "b[/]", "[bold]")
        data = write_npz(labelled(rng, (1, 1, 1), classes=names), tmp_path / "d.npz")
        done = evaluate(data, checkpoint=None, classes=3)
        assert done.code == 0, done.err
        assert all(name in done.out for name in names)


class TestUnreadableImages:
    def test_one_of_twenty_is_named_and_left_out(self, evaluate, images, weights, tmp_path):
        for name, bad in (
            ("text", b"no image"),
            ("cut", images.encoded[12][: len(images.encoded[12]) // 2]),
            ("empty", b""),
        ):
            changed = images.replaced({12: bad})
            data = write_npz(changed, tmp_path / f"{name}.npz")
            done = evaluate(data, "--json")
            found = result(done)
            assert found["images"] == 19
            assert [s["name"] for s in found["skipped"]] == ["test/12"]
            assert found["skipped"][0]["reason"]
            assert "skipped test/12: " in done.err
            whole = Labelled(
                images.classes,
                images.encoded[:12] + images.encoded[13:],
                images.labels[:12] + images.labels[13:],
            )
            assert found["confusion"] == confusion_of(whole, weights)

    def test_more_than_five_percent_are_refused_with_their_names(self, evaluate, images, tmp_path):
        half = images.encoded[3][: len(images.encoded[3]) // 2]
        for name, changes in (
            ("headers", {3: b"no image", 12: b""}),
            ("ends", {3: half, 12: half}),
            ("both", {3: b"no image", 12: half}),
        ):
            folder = write_folder(images.replaced(changes), tmp_path / name)
            refused(
                evaluate(folder), "more than 5%", "of the 20 images", "ant/0003.png", "bee/0012.png"
            )

    def test_what_cannot_be_seen_from_a_header_is_found_before_the_end(
        self, evaluate, images, tmp_path
    ):
        cut = {i: e[: len(e) // 2] for i, e in enumerate(images.encoded)}
        refused(evaluate(write_npz(images.replaced(cut), tmp_path / "d.npz")), "test/1")


class TestRefusals:
    def test_images_smaller_than_the_input_are_refused_before_the_model_is_made(
        self, evaluate, images, rng, tmp_path
    ):
        small = encode(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8))
        smallest = encode(rng.integers(0, 255, (64, 33, 3), dtype=np.uint8))
        big = labelled(rng, (9, 4, 7), (64, 64)).replaced({5: small, 9: smallest, 11: small})
        data = write_npz(big, tmp_path / "d.npz")
        done = evaluate(data, size=64, runtime="onnxruntime")
        refused(done, "smaller than the model's input", "never enlarged", "test/5", "of 3 such",
                "32x40 pixels", "--size 32")  # fmt: skip
        assert "export" not in done.err

    def test_data_that_are_not_there_or_of_another_layout(self, evaluate, tmp_path):
        (tmp_path / "empty").mkdir()
        np.savez(tmp_path / "other.npz", x=np.zeros(3), y=np.zeros(3))
        (tmp_path / "data.csv").write_text("a,b")
        for name, words in (
            ("none", "do not exist"),
            ("empty", "no subfolders"),
            ("other.npz", "an npz with x, y"),
            ("data.csv", "could not be read"),
        ):
            refused(evaluate(tmp_path / name), words, str(tmp_path / name))

    def test_classes_that_the_model_does_not_know(self, evaluate, rng, tmp_path):
        names = ("ant", "bee", "dog")
        data = write_npz(labelled(rng, (1, 1, 1), classes=names), tmp_path / "d.npz")
        refused(evaluate(data), "does not know", "got:      dog", "cat, ant, bee")

    def test_another_number_of_classes_without_a_card(self, evaluate, npz):
        refused(
            evaluate(npz, checkpoint=None, classes=4),
            "the data have 3 classes and the model has 4",
            "--classes 3",
        )

    def test_a_card_of_other_weights_or_another_number_of_classes(
        self, evaluate, npz, weights, tmp_path
    ):
        refused(evaluate(npz, classes=4), "card names 3 classes", "leave --classes out")
        copy = tmp_path / "w.safetensors"
        copy.write_bytes(weights.read_bytes())
        copy.with_suffix(".json").write_text(json.dumps({"classes": CARD, "sha256": "0"}))
        refused(evaluate(npz, checkpoint=copy), "of other weights")
        copy.with_suffix(".json").write_text("{")
        refused(evaluate(npz, checkpoint=copy), "could not be read", "w.json")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"precision": "int8"}, "INT8 needs a calibration"),
            ({"limit": 0}, "--limit"),
            ({"batch": 0}, "--batch"),
            ({"model": "no_such"}, "unknown model"),
            ({"checkpoint": "/no/such.pth"}, "checkpoint does not exist"),
            ({"storm": "keep=0"}, "out of range"),
            ({"size": 17}, "too small"),
            ({"target": "t4"}, "torch runs none"),
            ({"work": "/proc/stormrt", "runtime": "onnxruntime"}, "could not write"),
        ],
    )
    def test_bad_options(self, evaluate, npz, changes, words):
        refused(evaluate(npz, **changes), words)

    def test_errors_are_json_where_that_is_asked_for(self, evaluate, tmp_path):
        done = evaluate(tmp_path / "none", "--json")
        assert done.code == 2
        assert json.loads(done.out)["error"]["what"] == "the data do not exist"

    def test_an_engine_without_a_gpu_is_refused_with_exit_code_3(self, evaluate, npz):
        from stormrt.pipeline.probe import cuda_driver

        if cuda_driver().reason is None:
            pytest.skip("there is a GPU here")
        done = evaluate(npz, runtime="tensorrt")
        assert done.code == 3
        assert "an engine runs on its GPU alone" in done.err
        assert "Traceback" not in done.err

    def test_weights_that_give_nan_are_refused(self, evaluate, npz, tmp_path):
        model = build_vmamba(SMALL, 3).state_dict()
        model["classifier.head.bias"][0] = torch.nan
        torch.save(model, tmp_path / "nan.pth")
        refused(evaluate(npz, checkpoint=tmp_path / "nan.pth", classes=3), "not finite", "nan.pth")


def test_only_a_batch_of_images_is_decoded_at_a_time(evaluate, npz, monkeypatch):
    """The largest number of decoded images that were alive together."""
    import weakref

    from stormrt.pipeline import evaluation

    alive, most = weakref.WeakSet(), []
    original = evaluation.preprocess_labelled

    class Tracked(np.ndarray):
        """An array that can be counted: its identity is its hash."""

        __hash__ = object.__hash__

    def preprocess(*arguments):
        image = original(*arguments).view(Tracked)
        alive.add(image)
        most.append(len(alive))
        return image

    monkeypatch.setattr(evaluation, "preprocess_labelled", preprocess)
    assert result(evaluate(npz, "--json", batch=4))["images"] == 20
    assert 1 < max(most) <= 5


def test_a_process_of_its_own_evaluates_and_shows_no_bar_in_a_pipe(npz, weights, tmp_path):
    done = run_stormrt(
        "evaluate", "--model", SMALL, "--size", 32, "--checkpoint", weights, "--data", npz,
        "--runtime", "torch", "--storm", DENSE, "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 20
    assert done.stderr == ""


class TestClassify:
    def test_the_classes_are_those_of_the_model_with_their_probabilities(
        self, cli, images, weights, tmp_path
    ):
        photo = tmp_path / "photo.png"
        photo.write_bytes(images.encoded[0])
        arguments = ["classify", photo, "--model", SMALL, "--size", 32, "--checkpoint", weights]
        arguments += ["--storm", DENSE]
        logits = logits_of(images.encoded[:1], weights)[0].astype(float)
        expected = np.exp(logits) / np.exp(logits).sum()
        for runtime in ("torch", "onnxruntime"):
            done = cli(*arguments, "--runtime", runtime, "--json")
            found = result(done)
            assert found["photograph"] == str(photo)
            assert found["runtime"] == runtime
            order = np.argsort(-expected)
            assert [c["index"] for c in found["classes"]] == order.tolist()
            assert [c["name"] for c in found["classes"]] == [CARD[i] for i in order]
            shown = [c["probability"] for c in found["classes"]]
            np.testing.assert_allclose(shown, expected[order], rtol=1e-3)
        done = cli(*arguments, "--runtime", "torch", "--top", 1)
        assert done.code == 0
        assert f"photo.png: {CARD[order[0]]}" in done.out
        assert CARD[order[1]] not in done.out

    def test_without_a_card_outputs_have_numbers(self, cli, images, tmp_path):
        (tmp_path / "p.png").write_bytes(images.encoded[0])
        done = cli(
            "classify", tmp_path / "p.png", "--model", SMALL, "--size", 32, "--classes", 3,
            "--runtime", "torch", "--storm", DENSE, "--json",
        )  # fmt: skip
        assert {c["name"] for c in result(done)["classes"]} == {"class 0", "class 1", "class 2"}
        assert "the classes mean nothing" in done.err

    def test_bad_photographs_are_refused(self, cli, rng, tmp_path):
        (tmp_path / "text.png").write_text("no image")
        small = encode(rng.integers(0, 255, (31, 90, 3), dtype=np.uint8))
        (tmp_path / "small.png").write_bytes(small)
        for name, words in (
            ("none.png", "could not be read"),
            ("text.png", "could not be read"),
            ("small.png", "smaller than the model's input"),
        ):
            done = cli(
                "classify", tmp_path / name, "--model", SMALL, "--size", 32, "--storm", DENSE
            )
            refused(done, words, name)
        done = cli("classify", tmp_path / "x.png", "--model", SMALL, "--size", 32, "--top", 0)
        refused(done, "--top")


class TestDefaultsOfAModel:
    @pytest.fixture
    def tiny_nano(self, monkeypatch, tmp_path):
        """A nano model's row over a small model, with a package's folder of its own."""
        import dataclasses

        from stormrt.storm.variants import VARIANTS

        row = dataclasses.replace(
            VARIANTS[SMALL], name="nano_for_tests", image=32, num_classes=len(CARD)
        )
        monkeypatch.setitem(VARIANTS, row.name, row)
        monkeypatch.setattr(bundle, "_FOLDER", tmp_path / "models")
        (tmp_path / "models").mkdir()
        return row.name

    @pytest.fixture
    def bundled_weights(self, tiny_nano, weights, tmp_path):
        for suffix in (".safetensors", ".json"):
            target = tmp_path / "models" / f"{tiny_nano}{suffix}"
            target.write_bytes(weights.with_suffix(suffix).read_bytes())

    @pytest.mark.usefixtures("bundled_weights")
    def test_weights_of_the_package_are_taken_without_a_checkpoint(
        self, cli, tiny_nano, images, npz, weights
    ):
        done = cli(
            "evaluate",
            "--model",
            tiny_nano,
            "--data",
            npz,
            "--runtime",
            "torch",
            "--storm",
            DENSE,
            "--json",
        )
        found = result(done)
        assert found["confusion"] == confusion_of(images, weights)
        assert found["model"]["checkpoint"] == f"bundled:{tiny_nano}"
        assert found["weights"] == f"bundled:{tiny_nano}, SHA-256 {digest(weights)}"
        assert "random" not in done.err

    @pytest.mark.usefixtures("bundled_weights")
    def test_another_number_of_classes_asks_for_a_model_of_its_own(self, cli, tiny_nano, npz):
        done = cli(
            "evaluate",
            "--model",
            tiny_nano,
            "--data",
            npz,
            "--runtime",
            "torch",
            "--storm",
            DENSE,
            "--classes",
            4,
        )
        refused(done, "the data have 3 classes and the model has 4")

    @pytest.mark.usefixtures("bundled_weights")
    def test_a_build_takes_size_classes_and_weights_of_the_model_and_is_validated_again(
        self, cli, tiny_nano, photographs, tmp_path
    ):
        out = tmp_path / "out"
        done = cli(
            "build", "--model", tiny_nano, "--target", "orin-nano-8g", "--out", out,
            "--photos", photographs, "--storm", DENSE, "--json",
        )  # fmt: skip
        assert done.code == 0, done.err
        spec = json.loads(done.out)["manifest"]["model"]
        assert (spec["height"], spec["width"], spec["num_classes"]) == (32, 32, 3)
        assert spec["checkpoint"] == f"bundled:{tiny_nano}"
        assert str(tmp_path).encode() not in (out / "manifest.json").read_bytes()
        assert cli("validate", out).code == 0

    def test_without_weights_in_the_package_they_are_random_and_said_to_be(
        self, cli, tiny_nano, npz
    ):
        done = cli(
            "evaluate", "--model", tiny_nano, "--data", npz, "--runtime", "torch", "--storm", DENSE
        )
        assert done.code == 0, done.err
        assert f"{tiny_nano} needs a --checkpoint" in done.err

    @pytest.mark.parametrize(
        ("model", "side", "classes"),
        [
            ("vmamba_nano_scenes", 128, 6),
            ("vmamba_nano_cifar10", 32, 10),
            ("vmamba_tiny_s1l8", 224, 1000),
        ],
    )
    def test_size_and_classes_come_from_the_model(self, model, side, classes):
        from stormrt.pipeline.model_spec import resolve_spec

        spec = resolve_spec(model)
        assert (spec.height, spec.width, spec.num_classes) == (side, side, classes)


@pytest.mark.parametrize(
    ("model", "data", "classes"),
    [("vmamba_nano_scenes", "scenes128.npz", 6), ("vmamba_nano_cifar10", "cifar10.npz", 10)],
)
def test_the_demo_models_are_evaluated_on_their_own_data(cli, model, data, classes):
    if not (DATA / data).is_file():
        pytest.skip(f"{DATA / data} is not there: the data do not come with the project")
    done = cli(
        "evaluate", "--model", model, "--data", DATA / data, "--limit", 40, "--runtime", "torch",
        "--json",
    )  # fmt: skip
    found = result(done)
    assert found["images"] == 40
    assert len(found["classes"]) == len(found["confusion"]) == classes
    assert found["skipped"] == []
