# SPDX-License-Identifier: Apache-2.0
"""What the plugins answer TensorRT, against what their SPECs declare.

The library is loaded by dlopen and through the registries of TensorRT lean 10 and 11, each in a
process of its own. What can go wrong: an input's position or type is another in C++; a decision
looks at tensors that TensorRT has not filled in; a shape is solved from the wrong extent, seen
only where the map is not square; a wrong node crashes instead of being refused; a plan's fields
do not make the plugin that wrote them.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from stormrt.errors import InputError
from stormrt.pipeline.probe import cuda_driver
from stormrt.plugins.derive.cpp_header import native_plugins
from stormrt.plugins.selective_scan_2d import SPEC as SCAN
from stormrt.plugins.spatial_unit_gather import SPEC as GATHER
from stormrt.plugins.spatial_unit_merge import SPEC as MERGE
from stormrt.plugins.spatial_unit_scatter import SPEC as SCATTER
from stormrt.plugins.spec import DOMAIN, PluginSpec
from tests.helpers.native import LEAN_VERSIONS, Host

DTYPES = {"float32": 0, "float16": 1, "int32": 3}
"""nvinfer1::DataType."""
ALL_DTYPES = range(10)
ALL_FORMATS = range(13)
LINEAR = 0
CHAR, INT32 = 6, 5
"""nvinfer1::PluginFieldType."""
BUILD, RUNTIME = 0, 1

SPECS = pytest.mark.parametrize("spec", native_plugins(), ids=lambda spec: spec.name)
HOSTS = [None, *LEAN_VERSIONS]


@pytest.fixture(params=HOSTS, ids=lambda version: f"lean-{version}" if version else "dlopen")
def host(request, start_host) -> Host:
    return start_host(request.param)


@pytest.fixture
def plain_host(start_host) -> Host:
    """For questions whose answers do not come near TensorRT."""
    return start_host(None)


def type_numbers(spec: PluginSpec, io_dtype: str) -> list[int]:
    """Types of inputs and outputs."""
    tensors = (*spec.inputs, *spec.outputs)
    return [DTYPES[io_dtype if t.dtype == "T" else t.dtype] for t in tensors]


def extents(shape) -> str:
    return ",".join(map(str, shape)) or "-"


def sizes_like(spec: PluginSpec, rng: np.random.Generator) -> dict[str, int]:
    """Random sizes, all different, so that no extent passes for another."""
    symbols = sorted(
        {s for t in (*spec.inputs, *spec.outputs) for d in t.shape for s in d.split("*")}
    )
    values = rng.choice(np.arange(2, 17), size=len(symbols), replace=False)
    return dict(zip(symbols, map(int, values), strict=True)) | dict(spec.constants)


def shapes_of(spec: PluginSpec, sizes: dict[str, int]) -> list[tuple[int, ...]]:
    """Shapes of inputs and outputs."""
    return [
        tuple(int(np.prod([sizes[s] for s in extent.split("*")])) for extent in t.shape)
        for t in (*spec.inputs, *spec.outputs)
    ]


def descs(spec: PluginSpec, shapes, io_dtype: str = "float32") -> list[str]:
    types = type_numbers(spec, io_dtype)
    return [f"{t}/{LINEAR}/{extents(s)}" for t, s in zip(types, shapes, strict=True)]


def field(name: str, value: bytes, kind: int = CHAR) -> str:
    return f"{name}:{kind}:{value.hex()}"


def attributes(spec: PluginSpec) -> list[str]:
    return [field(name, value.encode()) for name, value in spec.attributes().items()]


def test_the_creators_are_those_of_the_specs_in_our_namespace(host: Host):
    found = {tuple(line.split()[1:]) for line in host.ask("creators") if line.startswith("creator")}
    assert found == {(spec.name, spec.version, DOMAIN) for spec in native_plugins()}
    assert native_plugins() == (SCAN, GATHER, MERGE, SCATTER)


def test_the_creators_ask_for_the_attributes_that_every_node_carries(host: Host):
    lines = [line.split() for line in host.ask("creators") if line.startswith("field")]
    assert {(name, int(kind)) for _, name, kind, *_ in lines} == {
        (name, CHAR) for name in SCAN.attributes()
    }


@SPECS
@pytest.mark.parametrize("phase", [BUILD, RUNTIME], ids=["build", "runtime"])
def test_a_plugin_is_created_and_its_fields_make_it_again(host: Host, spec: PluginSpec, phase: int):
    answer = host.ask("create", spec.name, phase, *attributes(spec))
    assert answer[0] == "created"
    assert answer[-1] == "roundtrip"
    written = {tuple(line.split()[1:]) for line in answer if line.startswith("field")}
    assert written == {
        (name, str(CHAR), value.encode().hex()) for name, value in spec.attributes().items()
    }
    assert f"outputs {len(spec.outputs)}" in answer
    (timing,) = (line for line in answer if line.startswith("timing"))
    assert re.fullmatch(rf"timing {spec.name}/{spec.version}/[0-9a-f]{{12}}/cuda\d+", timing), (
        timing
    )


@SPECS
def test_while_a_graph_is_parsed_attributes_may_be_left_out(host: Host, spec: PluginSpec):
    assert host.ask("create", spec.name, BUILD)[0] == "created"
    assert host.ask("create", spec.name, BUILD, "@null")[0] == "created"
    assert host.ask("create", spec.name, BUILD, attributes(spec)[0])[0] == "created"


@SPECS
def test_a_terminating_zero_may_be_part_of_a_string(host: Host, spec: PluginSpec):
    fields = [field(n, v.encode() + b"\0") for n, v in spec.attributes().items()]
    assert host.ask("create", spec.name, RUNTIME, *fields)[0] == "created"


WRONG = {
    "another version": ([field("plugin_version", b"2")], "is '2', expected '1'"),
    "a longer version": ([field("plugin_version", b"11")], "is '11', expected '1'"),
    "no version": ([field("plugin_version", b"")], "is '', expected '1'"),
    "another namespace": ([field("plugin_namespace", b"other")], "is 'other'"),
    "an integer": ([field("plugin_version", b"\1\0\0\0", INT32)], "has the type 5, expected 6"),
    "an unknown field": ([field("axis", b"\1\0\0\0", INT32)], "no field 'axis'"),
    "a field twice": ([field("plugin_version", b"1")] * 2, "given twice"),
    "a field without data": (["plugin_version:6:!"], "no data"),
    "a field without a name": (["?:6:31"], "has no name"),
    "a negative number of fields": (["@negative"], "malformed"),
    "fields that are not there": (["@missing"], "malformed"),
}


@SPECS
@pytest.mark.parametrize("phase", [BUILD, RUNTIME], ids=["build", "runtime"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_attribute_is_refused_with_a_reason(
    host: Host, spec: PluginSpec, phase: int, wrong: str
):
    fields, reason = WRONG[wrong]
    assert host.ask("create", spec.name, phase, *fields) == ["refused"]
    assert len(host.log) == 1
    assert host.log[0].startswith(f"stormrt: {spec.name}: layer: ")
    assert reason in host.log[0]


@SPECS
def test_a_plan_with_a_missing_field_is_refused_with_a_reason(host: Host, spec: PluginSpec):
    for left_out, name in enumerate(spec.attributes()):
        given = attributes(spec)
        del given[left_out]
        assert host.ask("create", spec.name, RUNTIME, *given) == ["refused"]
        assert f"field '{name}' is missing" in host.log[0]
    assert host.ask("create", spec.name, RUNTIME, "@null") == ["refused"]


@SPECS
def test_formats_and_types_are_the_declared_ones_for_every_combination(
    plain_host: Host, spec: PluginSpec
):
    tensors = (*spec.inputs, *spec.outputs)
    for io_dtype in spec.io_dtypes:
        types = type_numbers(spec, io_dtype)
        io_types = [DTYPES[d] for d in spec.io_dtypes]
        for position, tensor in enumerate(tensors):
            before = [f"{t}/{LINEAR}/-" for t in types[:position]]
            decides = tensor is spec.inputs[0]
            for dtype, layout in itertools.product(ALL_DTYPES, ALL_FORMATS):
                fits = dtype in io_types if decides else dtype == types[position]
                (answer,) = plain_host.ask(
                    *("formats", spec.name, len(spec.inputs), len(spec.outputs), position),
                    *(*before, f"{dtype}/{layout}/-"),
                )
                assert answer == str(int(fits and layout == LINEAR)), (tensor.name, dtype, layout)


@SPECS
def test_another_count_of_tensors_is_no_supported_combination(plain_host: Host, spec: PluginSpec):
    inputs, outputs = len(spec.inputs), len(spec.outputs)
    for counts in ((inputs + 1, outputs), (inputs - 1, outputs), (inputs, outputs + 1)):
        assert plain_host.ask("formats", spec.name, *counts, 0, "0/0/-") == ["0"]
    assert plain_host.ask("types", spec.name, outputs, 0) != [f"0{' 0' * outputs}"]
    assert "inputs" in plain_host.log[0]


@SPECS
def test_output_types_follow_the_inputs_and_any_other_combination_is_refused(
    plain_host: Host, spec: PluginSpec
):
    count = len(spec.inputs)
    legal = {tuple(type_numbers(spec, d)[:count]): d for d in spec.io_dtypes}
    for types in itertools.product((0, 1, 3), repeat=count):
        (answer,) = plain_host.ask("types", spec.name, len(spec.outputs), *types)
        status, *outputs = map(int, answer.split())
        if types in legal:
            assert (status, outputs) == (0, type_numbers(spec, legal[types])[count:])
        else:
            assert status != 0
            assert "has the type" in plain_host.log[0]
    for odd in (2, 4, 7):  # INT8, BOOL, BF16
        (answer,) = plain_host.ask("types", spec.name, len(spec.outputs), *[odd] * count)
        assert answer.split()[0] != "0"


@SPECS
@pytest.mark.parametrize("constant", [1, 0], ids=["fixed", "dynamic"])
def test_output_shapes_are_the_declared_ones(
    host: Host, spec: PluginSpec, constant: int, rng: np.random.Generator
):
    for _ in range(20):
        shapes = shapes_of(spec, sizes_like(spec, rng))
        inputs = shapes[: len(spec.inputs)]
        expected = spec.output_shapes(spec.bind(inputs))
        answer = host.ask("shapes", spec.name, len(spec.outputs), constant, *map(extents, inputs))
        assert answer == [f"0 {' '.join(map(extents, expected))}"]


def wrong_shapes(spec: PluginSpec, rng: np.random.Generator):
    """Inputs of which one extent, or one rank, does not fit; PluginSpec agrees that it does not."""
    good = shapes_of(spec, sizes_like(spec, rng))[: len(spec.inputs)]
    for index, shape in enumerate(good):
        variants = [shape[:-1], (*shape, 1)]
        for axis in range(len(shape)):
            variants += [(*shape[:axis], shape[axis] + d, *shape[axis + 1 :]) for d in (1, -1)]
        for variant in variants:
            shapes = [*good[:index], variant, *good[index + 1 :]]
            try:
                spec.bind(shapes)
            except InputError:
                yield shapes


@SPECS
def test_fixed_shapes_that_do_not_fit_are_refused_when_the_graph_is_parsed(
    plain_host: Host, spec: PluginSpec, rng: np.random.Generator
):
    for shapes in wrong_shapes(spec, rng):
        if any(not s for s in shapes):
            continue
        answer = plain_host.ask("shapes", spec.name, len(spec.outputs), 1, *map(extents, shapes))
        assert answer[0].split()[0] != "0", shapes
        assert plain_host.log, shapes


@SPECS
def test_a_change_of_shape_is_taken_where_the_spec_takes_it(
    plain_host: Host, spec: PluginSpec, rng: np.random.Generator
):
    for io_dtype in spec.io_dtypes:
        shapes = shapes_of(spec, sizes_like(spec, rng))
        answer = plain_host.ask(
            "onshapechange", spec.name, len(spec.inputs), *descs(spec, shapes, io_dtype)
        )
        assert answer == ["0"], plain_host.log


@SPECS
def test_a_change_to_a_wrong_shape_is_refused_with_a_reason(
    plain_host: Host, spec: PluginSpec, rng: np.random.Generator
):
    outputs = shapes_of(spec, sizes_like(spec, rng))[len(spec.inputs) :]
    for shapes in wrong_shapes(spec, rng):
        answer = plain_host.ask(
            "onshapechange", spec.name, len(spec.inputs), *descs(spec, [*shapes, *outputs])
        )
        assert answer != ["0"]
        assert "input" in plain_host.log[0]


@SPECS
def test_wrong_outputs_empty_maps_and_huge_extents_are_refused(
    plain_host: Host, spec: PluginSpec, rng: np.random.Generator
):
    sizes = sizes_like(spec, rng)
    good = shapes_of(spec, sizes)
    *inputs, (batch, *rest) = good
    huge = shapes_of(spec, sizes | {"B": 2**31})
    empty = shapes_of(spec, sizes | {"B": 0})
    for shapes in ([*inputs, (batch, *rest[::-1])], [*inputs, (batch + 1, *rest)], huge, empty):
        answer = plain_host.ask("onshapechange", spec.name, len(inputs), *descs(spec, shapes))
        assert answer != ["0"]
        assert plain_host.log


def scan_shapes(batch: int, channels: int, height: int, width: int, state: int):
    sizes = {"B": batch, "D": channels, "H": height, "W": width, "N": state, "K": 4}
    return shapes_of(SCAN, sizes)


def test_the_scan_refuses_sizes_that_its_kernel_does_not_take(plain_host: Host):
    count = len(SCAN.inputs)
    for shapes, reason in (
        (scan_shapes(1, 2, 3, 4, 17), "a state of 17"),
        (scan_shapes(64, 4096, 64, 64, 1), "elements in 'dt'"),
    ):
        answer = plain_host.ask("onshapechange", SCAN.name, count, *descs(SCAN, shapes))
        assert answer != ["0"]
        assert reason in plain_host.log[0]


def test_the_scan_offers_the_tactics_that_its_whole_range_of_batches_can_run(plain_host: Host):
    def offered(*batches: int) -> list[int]:
        bounds = [descs(SCAN, scan_shapes(b, 96, 14, 15, 1), "float16") for b in batches]
        inputs = ["|".join(tensor) for tensor in zip(*bounds, strict=True)][: len(SCAN.inputs)]
        status, *tactics = map(int, plain_host.ask("tactics", SCAN.name, *inputs)[0].split())
        assert status == 0
        return tactics

    single = [offered(b, b, b) for b in (1, 4, 16)]
    for tactics in (*single, offered(1, 4, 16)):
        assert tactics == list(range(1, len(tactics) + 1))
    assert len(offered(1, 4, 16)) == min(map(len, single)) > 0


@pytest.mark.parametrize("spec", [GATHER, SCATTER, MERGE], ids=lambda spec: spec.name)
def test_what_moves_lines_has_no_tactics_to_choose_from(plain_host: Host, spec: PluginSpec):
    shapes = shapes_of(spec, {"B": 2, "C": 3, "H": 5, "W": 7, "H'": 4, "W'": 6})
    tensors = ["|".join([d] * 3) for d in descs(spec, shapes)[: len(spec.inputs)]]
    assert plain_host.ask("tactics", spec.name, *tensors) == ["0"]


@SPECS
@pytest.mark.skipif(cuda_driver().reason is None, reason="this machine has a GPU")
def test_without_a_gpu_a_call_fails_with_a_reason(
    plain_host: Host, spec: PluginSpec, rng: np.random.Generator
):
    shapes = shapes_of(spec, sizes_like(spec, rng))
    answer = plain_host.ask("enqueue", spec.name, len(spec.inputs), *descs(spec, shapes))
    assert answer != ["0"]
    assert "not launched" in plain_host.log[0]
    assert "cudaError" in plain_host.log[0]
