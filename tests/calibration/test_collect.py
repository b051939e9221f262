# SPDX-License-Identifier: Apache-2.0
"""What onnxruntime makes of the images is what is observed; a run that was stopped goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stormrt.calibration import collect as module
from stormrt.calibration.collect import collect
from stormrt.calibration.statistics import Statistics
from stormrt.calibration.table import CalibrationImage
from stormrt.errors import InputError

SIDE, CHANNELS = 8, 5
TENSORS = ["images", "features", "mean"]


def graph(rng: np.random.Generator, batch: int = 1) -> onnx.ModelProto:
    """A convolution, its square root (NaN below zero), and a mean; the logits are a product."""
    weights = {
        "weight": rng.normal(size=(CHANNELS, 3, 3, 3)),
        "head": rng.normal(size=(CHANNELS, 2)),
    }
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Sqrt", ["features"], ["root"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
        helper.make_node("ReduceSum", ["features"], ["sum"], keepdims=0),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def values_of(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """The three tensors by NumPy, in FP64."""
    weights = {i.name: numpy_helper.to_array(i).astype(float) for i in model.graph.initializer}
    padded = np.pad(images.astype(float), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    features = np.einsum("bchwij,ocij->bohw", windows, weights["weight"])
    return {"images": images, "features": features, "mean": features.mean((2, 3))}


@dataclass
class Given:
    """Images in memory, that count how often each was asked for."""

    arrays: np.ndarray
    asked: list[int] = field(default_factory=list)

    @property
    def images(self) -> list[CalibrationImage]:
        return [
            CalibrationImage(name=f"image {i}", sha256=str(hash(a.tobytes())))
            for i, a in enumerate(self.arrays)
        ]

    def load(self, index: int) -> np.ndarray:
        self.asked.append(index)
        return self.arrays[index]


@pytest.fixture
def given(rng) -> Given:
    return Given(rng.normal(size=(7, 3, SIDE, SIDE)).astype(np.float32))


@pytest.fixture
def model(rng) -> onnx.ModelProto:
    return graph(rng)


class Stopped(BaseException):
    """As if the process had been killed: nothing of ours catches it."""


def stop_after(images: int):
    def on_image(done, _total):
        if done >= images:
            raise Stopped

    return on_image


def equal(a: Statistics, b: Statistics) -> bool:
    """To the bit."""
    return (
        a.images == b.images
        and a.largest == b.largest
        and all(
            one.histogram.exponent == b.tensors[name].histogram.exponent
            and np.array_equal(one.histogram.counts, b.tensors[name].histogram.counts)
            and np.array_equal(one.channel_largest, b.tensors[name].channel_largest)
            and np.array_equal(one.channel_sum, b.tensors[name].channel_sum)
            for name, one in a.tensors.items()
        )
    )


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_what_is_observed_is_what_the_graph_computes(rng, given, batch):
    """With batches that the images fill and ones that they do not: what fills up is not seen."""
    model = graph(rng, batch)
    before = model.SerializeToString()
    told = []
    found = collect(model, TENSORS, given, batch=batch, on_image=lambda *event: told.append(event))
    expected = values_of(model, given.arrays)
    assert list(found.tensors) == TENSORS
    for name, values in expected.items():
        seen, axes = found.tensors[name], (0, *range(2, values.ndim))
        assert seen.histogram.total == values.size
        np.testing.assert_allclose(seen.channel_largest, np.abs(values).max(axes), rtol=1e-5)
        np.testing.assert_allclose(seen.mean, values.mean(axes), rtol=1e-4, atol=1e-5)
    assert found.images == [image.sha256 for image in given.images]
    assert given.asked == list(range(7))
    assert told[0] == (0, 7)
    assert told[-1] == (7, 7)
    assert len(told) == 1 + -(-7 // batch)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("batch", [1, 3])
def test_of_other_values_the_largest_is_kept_whatever_their_shape(rng, given, batch):
    """``sum`` is a number for all images of a batch; what fills a batch up is not seen."""
    model = graph(rng, batch)
    given.arrays[0] *= 3
    found = collect(model, ["mean"], given, batch=batch, also=["features", "mean", "sum"])
    features = values_of(model, given.arrays)["features"]
    assert list(found.tensors) == ["mean"]
    assert set(found.largest) == {"features", "sum"}
    assert found.largest["features"] == pytest.approx(np.abs(features).max(), rel=1e-5)


def test_the_graph_may_be_a_file(model, given, tmp_path):
    onnx.save(model, tmp_path / "m.onnx")
    assert equal(
        collect(tmp_path / "m.onnx", TENSORS, given, batch=1),
        collect(model, TENSORS, given, batch=1),
    )


class TestGoingOn:
    def run(self, model, given, keep, **options):
        return collect(model, TENSORS, given, batch=1, keep=keep, save_every_s=0, **options)

    def test_a_stopped_run_goes_on_and_gives_what_an_undisturbed_one_gives(
        self, model, given, tmp_path
    ):
        undisturbed = collect(model, TENSORS, given, batch=1, also=["logits"])
        assert set(undisturbed.largest) == {"logits"}
        keep = tmp_path / "s.npz"
        for images, asked in ((2, [0, 1]), (5, [2, 3, 4])):
            given.asked.clear()
            with pytest.raises(Stopped):
                self.run(model, given, keep, also=["logits"], on_image=stop_after(images))
            assert given.asked == asked
        given.asked.clear()
        told = []
        found = self.run(
            model, given, keep, also=["logits"], on_image=lambda *event: told.append(event)
        )
        assert given.asked == [5, 6]
        assert told == [(5, 7), (6, 7), (7, 7)]
        assert equal(found, undisturbed)

    def test_a_finished_run_is_only_read(self, model, given, tmp_path, monkeypatch):
        first = self.run(model, given, tmp_path / "s.npz")
        given.asked.clear()
        monkeypatch.setattr(module, "_open_session", None)  # it would be called
        assert equal(self.run(model, given, tmp_path / "s.npz"), first)
        assert given.asked == []

    def test_more_images_go_on_from_fewer(self, model, given, tmp_path):
        few = Given(given.arrays[:3])
        self.run(model, few, tmp_path / "s.npz")
        found = self.run(model, given, tmp_path / "s.npz")
        assert given.asked == [3, 4, 5, 6]
        assert equal(found, collect(model, TENSORS, given, batch=1))

    def test_what_is_of_something_else_is_not_taken_up(self, rng, model, given, tmp_path):
        """Another graph, other tensors, other or fewer images."""
        keep = tmp_path / "s.npz"
        whole = self.run(model, given, keep)
        content = keep.read_bytes()
        other_graph, other_tensors = graph(rng), ["features", "mean"]
        other_images = Given(np.concatenate([given.arrays[:2], given.arrays[:1:-1]]))
        fewer = Given(given.arrays[:4])
        for other, tensors, images in (
            (other_graph, TENSORS, given),
            (model, other_tensors, given),
            (model, TENSORS, other_images),
            (model, TENSORS, fewer),
        ):
            keep.write_bytes(content)
            images.asked.clear()
            found = collect(other, tensors, images, batch=1, keep=keep)
            assert images.asked == list(range(len(images.arrays)))
            assert not equal(found, whole) or list(found.tensors) != TENSORS
            assert equal(found, collect(other, tensors, images, batch=1))

    def test_it_is_written_every_so_often(self, model, given, tmp_path, monkeypatch):
        """Not at each batch, but always at the end."""
        written = []
        real = module.save_statistics

        def save(statistics, path, key):
            written.append(len(statistics.images))
            real(statistics, path, key)

        monkeypatch.setattr(module, "save_statistics", save)
        clock = iter(range(0, 1000, 2))
        monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
        collect(model, TENSORS, given, batch=1, keep=tmp_path / "s.npz", save_every_s=5)
        assert written == [3, 6, 7]


class TestRefusals:
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_names_the_tensor_and_the_image(self, rng, given, bad):
        model = graph(rng, 3)
        given.arrays[4, 1, 2, 3] = bad
        with pytest.raises(InputError, match="not finite") as refusal:
            collect(model, ["features"], given, batch=3)
        assert refusal.value.where == "features"
        assert "image 4" in str(refusal.value.got)

    def test_other_values_that_are_not_finite_name_the_value_and_the_images(self, model, given):
        with pytest.raises(InputError, match="not finite") as refusal:
            collect(model, ["features"], given, batch=1, also=["root"])
        assert refusal.value.where == "root"
        assert "image 0" in str(refusal.value.got)

    def test_a_root_of_what_is_below_zero_is_found(self, model, given, tmp_path):
        with pytest.raises(InputError, match="not finite") as refusal:
            collect(model, ["features", "root"], given, batch=1, keep=tmp_path / "s.npz")
        assert refusal.value.where == "root"

    def test_tensors_that_are_not_there_or_have_no_channels(self, model, given):
        for name, words in (("nowhere", "no such tensor"), ("weight", "no such tensor"),
                            ("sum", "no channels")):  # fmt: skip
            with pytest.raises(InputError, match=words) as refusal:
                collect(model, ["features", name], given, batch=1)
            assert name in str(refusal.value)

    def test_a_graph_that_onnxruntime_refuses(self, model, given):
        model.graph.node[1].op_type = "NoSuchOperator"
        with pytest.raises(InputError, match="onnxruntime refuses the graph"):
            collect(model, ["features"], given, batch=1)

    def test_a_file_that_is_no_graph(self, given, tmp_path):
        (tmp_path / "m.onnx").write_bytes(b"\xff" * 100)
        with pytest.raises(InputError, match="not an ONNX model"):
            collect(Path(tmp_path / "m.onnx"), ["features"], given, batch=1)


def test_memory_holds_one_batch_of_tensors_at_a_time(model, given, monkeypatch):
    """Arrays that onnxruntime gave and that are still alive when it is asked again."""
    import weakref

    alive: list[weakref.ref] = []
    most = []
    real = module._open_session

    class Session:
        def __init__(self, content):
            self.session = real(content)

        def run(self, names, feed):
            most.append(sum(ref() is not None for ref in alive))
            outputs = self.session.run(names, feed)
            alive.extend(weakref.ref(output) for output in outputs)
            return outputs

    monkeypatch.setattr(module, "_open_session", Session)
    collect(model, TENSORS, given, batch=1)
    assert len(most) == 7
    assert max(most) <= 2  # those of the batch before, until they are replaced
