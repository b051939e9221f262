# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant, folded into normalisations and weights.

What can go wrong: a graph that computes something else afterwards, a reader of the activation that
nobody told, equal weights of two layers that are stored once, scales of another graph.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stormrt.errors import InputError
from stormrt.pipeline.comparison import open_session
from stormrt.pipeline.quantize.policy import linear_nodes, quantised_nodes
from stormrt.pipeline.quantize.smooth import fold_smoothing, smoothing_scales
from stormrt.pipeline.rewrite.name_by_module import selection_values
from stormrt.pipeline.rewrite.verify import verify
from tests.pipeline.support import Graphs, relative, run_onnx
from tests.pipeline.tables import channel_largest, values_of

CHANNELS, OUTPUTS = 6, 4


def normalised_conv(
    rng: np.random.Generator, *, readers: int = 1, groups: int = 1, shared: bool = False
) -> onnx.ModelProto:
    """x [1, 6, 3, 2] -> LayerNormalization over channels -> 1x1 Convs; a second, equal branch."""
    constants = {
        "gamma": rng.uniform(0.5, 2, CHANNELS),
        "beta": rng.standard_normal(CHANNELS),
        **{
            f"w{i}": rng.standard_normal((OUTPUTS, CHANNELS // groups, 1, 1))
            for i in range(readers)
        },
    }
    nodes, outputs, inner = [], [], []
    for branch in ("", "other.") if shared else ("",):
        chain = [
            helper.make_node("Transpose", ["x"], [branch + "t"], branch + "t", perm=[0, 2, 3, 1]),
            helper.make_node(
                "LayerNormalization", [branch + "t", "gamma", "beta"], [branch + "n"], branch + "n"
            ),
            helper.make_node(
                "Transpose", [branch + "n"], [branch + "a"], branch + "a", perm=[0, 3, 1, 2]
            ),
        ]
        inner += [
            *(helper.make_tensor_value_info(branch + v, 1, [1, 3, 2, CHANNELS]) for v in "tn"),
            helper.make_tensor_value_info(branch + "a", 1, [1, CHANNELS, 3, 2]),
        ]
        nodes += chain
        for i in range(readers):
            name = f"{branch}y{i}"
            nodes.append(
                helper.make_node("Conv", [branch + "a", f"w{i}"], [name], name, group=groups)
            )
            outputs.append(helper.make_tensor_value_info(name, 1, [1, OUTPUTS, 3, 2]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 3, 2])],
        outputs,
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in constants.items()],
        value_info=inner,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    return open_session(model.SerializeToString(), "test").run(None, {"x": x})


def in_float64(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The first Conv of ``normalised_conv`` by hand, from the graph's own weights."""
    stored = {i.name: numpy_helper.to_array(i).astype(np.float64) for i in model.graph.initializer}
    x = np.moveaxis(x.astype(np.float64), 1, -1)
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    value = normal * stored["gamma"] + stored["beta"]
    return np.moveaxis(value @ stored["w0"][:, :, 0, 0].T, -1, 1)


def activation_of(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    watched = deepcopy(model)
    watched.graph.output.append(next(v for v in watched.graph.value_info if v.name == "a"))
    return run(watched, x)[-1]


def uneven(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Scales from 1/30 to 30."""
    return np.exp(rng.uniform(-3.4, 3.4, channels)).astype(np.float32)


def test_the_smoothed_graph_computes_the_same_as_float64(rng):
    model = normalised_conv(rng)
    x = rng.standard_normal((1, CHANNELS, 3, 2)).astype(np.float32)
    expected = in_float64(model, x)
    before = deepcopy(model)
    assert fold_smoothing(model, {"a": uneven(rng, CHANNELS)}) == 1
    verify(model, after="smoothing")
    np.testing.assert_allclose(run(model, x)[0], expected, rtol=1e-5, atol=1e-5)
    assert model.graph.node == before.graph.node, "no op is added"
    weights = [numpy_helper.to_array(i) for m in (model, before) for i in m.graph.initializer]
    assert not np.allclose(weights[0], weights[len(weights) // 2]), "something was folded"


@pytest.mark.parametrize("groups", [1, 2])
def test_all_readers_of_an_activation_are_told(rng, groups):
    model = normalised_conv(rng, readers=2, groups=groups)
    x = rng.standard_normal((1, CHANNELS, 3, 2)).astype(np.float32)
    expected = run(model, x)
    fold_smoothing(model, {"a": uneven(rng, CHANNELS)})
    for got, wanted in zip(run(model, x), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_layers_that_share_equal_weights_each_get_their_own(rng):
    model = normalised_conv(rng, shared=True)
    x = rng.standard_normal((1, CHANNELS, 3, 2)).astype(np.float32)
    expected = run(model, x)
    fold_smoothing(model, {"a": uneven(rng, CHANNELS), "other.a": uneven(rng, CHANNELS)})
    for got, wanted in zip(run(model, x), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_the_scale_is_the_papers(rng):
    model = normalised_conv(rng, readers=2)
    largest = rng.uniform(0.1, 50, CHANNELS).astype(np.float32)
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    weights = np.abs(np.concatenate([stored["w0"], stored["w1"]])).max((0, 2, 3))
    for strength in (0.0, 0.3, 1.0):
        scales = smoothing_scales(model, linear_nodes(model), {"a": largest}, strength)
        expected = largest**strength / weights ** (1 - strength)
        np.testing.assert_allclose(scales["a"], expected, rtol=1e-5)


def test_at_half_strength_activations_and_weights_are_as_even_as_each_other(rng):
    model = normalised_conv(rng)
    x = rng.standard_normal((1, CHANNELS, 3, 2)).astype(np.float32)
    x[:, 2] *= 40
    seen = np.abs(activation_of(model, x)).max((0, 2, 3))
    fold_smoothing(model, smoothing_scales(model, linear_nodes(model), {"a": seen}))
    activations = np.abs(activation_of(model, x)).max((0, 2, 3))
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    np.testing.assert_allclose(activations, np.abs(stored["w0"]).max((0, 2, 3)), rtol=1e-4)


def test_a_channel_that_is_always_zero_or_that_nobody_weighs_is_left_as_it_is(rng):
    model = normalised_conv(rng)
    weight = numpy_helper.to_array(model.graph.initializer[2]).copy()
    weight[:, 1] = 0
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, "w0"))
    largest = np.array([0, 5, 1, 1, 1, 1], np.float32)
    scales = smoothing_scales(model, linear_nodes(model), {"a": largest})["a"]
    assert list(scales[:2]) == [1, 1]
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


@pytest.mark.parametrize("where", ["a", "n"])
def test_an_activation_that_something_else_reads_is_left_out(rng, where):
    model = normalised_conv(rng)
    shape = [1, CHANNELS, 3, 2] if where == "a" else [1, 3, 2, CHANNELS]
    model.graph.node.append(helper.make_node("Abs", [where], ["score"], "score"))
    model.graph.output.append(helper.make_tensor_value_info("score", 1, shape))
    largest = {"a": np.ones(CHANNELS, np.float32)}
    assert smoothing_scales(model, linear_nodes(model), largest) == {}
    with pytest.raises(InputError, match="cannot be smoothed"):
        fold_smoothing(model, {"a": uneven(rng, CHANNELS)})


def test_an_activation_that_leaves_the_graph_is_left_out(rng):
    model = normalised_conv(rng)
    model.graph.output.append(next(v for v in model.graph.value_info if v.name == "a"))
    largest = {"a": np.ones(CHANNELS, np.float32)}
    assert smoothing_scales(model, linear_nodes(model), largest) == {}


def test_a_normalisation_over_another_axis_is_left_out(rng):
    model = normalised_conv(rng)
    transposition = next(n for n in model.graph.node if n.name == "a")
    transposition.attribute[0].ints[:] = [0, 2, 3, 1]
    largest = {"a": np.ones(CHANNELS, np.float32)}
    assert smoothing_scales(model, linear_nodes(model), largest) == {}


@pytest.mark.parametrize(
    ("largest", "says"),
    [
        ({}, "nothing"),
        ({"a": np.ones(CHANNELS + 1, np.float32)}, "7 channels"),
        ({"a": np.full(CHANNELS, np.nan, np.float32)}, "not finite"),
    ],
)
def test_largest_values_that_do_not_fit_are_refused(rng, largest, says):
    model = normalised_conv(rng)
    with pytest.raises(InputError, match=says) as caught:
        smoothing_scales(model, linear_nodes(model), largest)
    assert caught.value.where == "a"


@pytest.mark.parametrize("bad", [np.zeros(CHANNELS), -np.ones(CHANNELS), np.ones(2)])
def test_scales_that_do_not_fit_are_refused(rng, bad):
    model = normalised_conv(rng)
    with pytest.raises(InputError, match="does not fit the graph"):
        fold_smoothing(model, {"a": bad.astype(np.float32)})


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_that_is_no_share_is_refused(rng, strength):
    model = normalised_conv(rng)
    with pytest.raises(InputError, match="no share"):
        smoothing_scales(model, linear_nodes(model), {"a": np.ones(CHANNELS, np.float32)}, strength)


def channels(graphs: Graphs, tensor: str) -> int:
    """Of a value [B, C, ...] of the exported graph."""
    graph = graphs.exported.graph
    value = next(v for v in (*graph.input, *graph.value_info) if v.name == tensor)
    return value.type.tensor_type.shape.dim[1].dim_value


class TestVMamba:
    def test_projections_behind_normalisations_are_smoothed_and_nothing_else(self, dense: Graphs):
        nodes = quantised_nodes(dense.exported)
        largest = {n.activation: np.ones(channels(dense, n.activation), np.float32) for n in nodes}
        scales = smoothing_scales(dense.exported, nodes, largest)
        smoothed = {n.name.split(".")[-1] for n in nodes if n.activation in scales}
        assert smoothed == {"in_proj/Conv", "out_proj/Conv", "fc1/Conv"}
        assert len(scales) == 3 * 5

    def test_the_model_computes_the_same(self, dense: Graphs, rng):
        images = rng.standard_normal((2, 3, 64, 48)).astype(np.float32)
        nodes = quantised_nodes(dense.exported)
        seen = channel_largest(dense.exported, (n.activation for n in nodes), images)
        scales = smoothing_scales(dense.exported, nodes, seen)
        planted = {n: s * uneven(rng, len(s)) for n, s in scales.items()}
        smoothed = deepcopy(dense.exported)
        assert fold_smoothing(smoothed, planted) == len(planted) > 0
        before, after = (run_onnx(m, images) for m in (dense.exported, smoothed))
        assert relative(after, before) < 1e-5

    def test_the_lines_that_storm_keeps_are_the_same(self, reduced: Graphs, rng):
        images = rng.standard_normal((1, 3, 64, 48)).astype(np.float32)
        nodes = quantised_nodes(reduced.exported)
        seen = channel_largest(reduced.exported, (n.activation for n in nodes), images)
        smoothed = deepcopy(reduced.exported)
        fold_smoothing(smoothed, smoothing_scales(reduced.exported, nodes, seen))
        names = selection_values(reduced.exported.graph)
        assert len(names) == 4
        before, after = (values_of(m, names, images) for m in (reduced.exported, smoothed))
        for name in names:
            np.testing.assert_array_equal(after[name], before[name])
