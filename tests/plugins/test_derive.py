# SPDX-License-Identifier: Apache-2.0
"""What is derived from a contract: the ONNX schema, and the marker node of the exporter."""

from __future__ import annotations

from dataclasses import replace

import pytest

onnx = pytest.importorskip("onnx")

# Imported only where the packages above are: these import them.
from onnx import TensorProto, defs, helper  # noqa: E402

from stormrt.errors import InputError  # noqa: E402
from stormrt.plugins.derive.onnx_schema import build_schema, register_schema  # noqa: E402
from stormrt.plugins.registry import all_plugins  # noqa: E402
from stormrt.plugins.selective_scan_2d import SPEC as SCAN  # noqa: E402
from stormrt.plugins.spatial_unit_gather import SPEC as GATHER  # noqa: E402
from stormrt.plugins.spec import DOMAIN, PluginSpec  # noqa: E402

SHAPES = {"x": [1, 3, 4, 5], "rows": [1, 2], "cols": [1, 2]}


@pytest.fixture(autouse=True)
def _schemas() -> None:
    for spec in all_plugins().values():
        register_schema(spec)


def gather_model(
    inputs: tuple[str, ...] = ("x", "rows", "cols"),
    *,
    kind: int = TensorProto.FLOAT,
    index: int = TensorProto.INT32,
    **attributes: object,
) -> onnx.ModelProto:
    """One gather node, well formed unless told otherwise."""
    node = helper.make_node(GATHER.name, inputs, ["y"], domain=DOMAIN, **attributes)
    kinds = {"x": kind, "rows": index, "cols": index}
    graph = helper.make_graph(
        [node],
        "gather",
        [helper.make_tensor_value_info(n, kinds[n], SHAPES[n]) for n in SHAPES],
        [helper.make_tensor_value_info("y", kind, [1, 3, 2, 2])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_checker_accepts_a_well_formed_node(kind: int) -> None:
    for attributes in ({}, GATHER.attributes()):
        onnx.checker.check_model(gather_model(kind=kind, **attributes), full_check=True)


@pytest.mark.parametrize(
    "model",
    [
        gather_model(axis=2),
        gather_model(plugin_version=1),  # a number, not text
        gather_model(("x", "rows")),
        gather_model(("x", "rows", "cols", "cols")),
    ],
    ids=["undeclared attribute", "attribute type", "too few", "too many"],
)
def test_the_checker_refuses_a_malformed_node(model: onnx.ModelProto) -> None:
    with pytest.raises(onnx.checker.ValidationError, match="SpatialUnit"):
        onnx.checker.check_model(model)


@pytest.mark.parametrize(
    ("kind", "index"),
    [(TensorProto.DOUBLE, TensorProto.INT32), (TensorProto.FLOAT, TensorProto.INT64)],
)
def test_the_checker_refuses_types_outside_the_contract(kind: int, index: int) -> None:
    with pytest.raises(onnx.shape_inference.InferenceError, match="SpatialUnitGather"):
        onnx.checker.check_model(gather_model(kind=kind, index=index), full_check=True)


@pytest.mark.parametrize("spec", all_plugins().values(), ids=lambda s: s.name)
def test_a_schema_says_what_its_contract_says(spec: PluginSpec) -> None:
    schema = defs.get_schema(spec.name, 1, DOMAIN)
    assert [p.name for p in schema.inputs] == [t.name for t in spec.inputs]
    assert [p.name for p in schema.outputs] == [t.name for t in spec.outputs]
    types = {"T": "T", "float32": "tensor(float)", "int32": "tensor(int32)"}
    assert [p.type_str for p in schema.inputs] == [types[t.dtype] for t in spec.inputs]
    assert set(schema.attributes) == set(spec.attributes())
    assert schema.doc == spec.doc


def test_registering_twice_is_harmless() -> None:
    before = len(defs.get_all_schemas())
    register_schema(SCAN)
    register_schema(SCAN)
    assert len(defs.get_all_schemas()) == before


@pytest.mark.parametrize(
    "other",
    [
        replace(GATHER, inputs=GATHER.inputs[:2]),
        replace(GATHER, inputs=(GATHER.inputs[0], GATHER.inputs[2], GATHER.inputs[1])),
        replace(GATHER, inputs=(*GATHER.inputs[:2], replace(GATHER.inputs[2], dtype="float32"))),
        replace(GATHER, outputs=(replace(GATHER.outputs[0], name="z"),)),
        replace(GATHER, io_dtypes=("float16",)),
    ],
    ids=["fewer inputs", "other order", "other type", "other output", "other io types"],
)
def test_another_schema_under_the_same_name_is_refused(other: PluginSpec) -> None:
    with pytest.raises(InputError, match="a different ONNX schema is already registered"):
        register_schema(other)
    register_schema(GATHER)  # the first one still stands


def test_a_schema_of_another_version_of_ours_is_refused_by_its_attributes() -> None:
    other = replace(GATHER, name="OfAnotherVersion")
    today = build_schema(other)
    defs.register_schema(
        defs.OpSchema(
            other.name,
            DOMAIN,
            1,
            inputs=list(today.inputs),
            outputs=list(today.outputs),
            type_constraints=[
                (t.type_param_str, list(t.allowed_type_strs), "") for t in today.type_constraints
            ],
        )
    )
    try:
        with pytest.raises(InputError, match="a different ONNX schema") as caught:
            register_schema(other)
        assert "plugin_namespace" in str(caught.value)
    finally:
        defs.deregister_schema(other.name, 1, DOMAIN)


def test_a_schema_can_be_built_without_being_registered() -> None:
    schema = build_schema(replace(GATHER, name="Unregistered"))
    assert schema.name == "Unregistered"
    assert not defs.has("Unregistered", DOMAIN)


def test_the_exporter_emits_one_opaque_node_for_each_call() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from stormrt.plugins.derive.onnx_export import translation_table

    class Both(torch.nn.Module):
        def forward(self, x, rows, cols):
            y = torch.ops.stormrt.spatial_unit_gather(x, rows, cols)
            many = y.repeat(1, 4, 1, 1)
            a = -torch.ones(12, 1)
            one = torch.ones(12)
            return torch.ops.stormrt.selective_scan_2d(
                y, many, many[:, :4], many[:, 4:8], a, one, one
            )

    table = translation_table()
    names = [spec.torch_name for spec in all_plugins().values()]
    assert set(table) == {getattr(torch.ops.stormrt, name).default for name in names}
    arguments = (
        torch.zeros(SHAPES["x"]),
        torch.tensor([[0, 2]]).int(),
        torch.tensor([[1, 3]]).int(),
    )
    program = torch.onnx.export(
        Both().eval(), arguments, dynamo=True, opset_version=18, verbose=False,
        custom_translation_table=table,
    )  # fmt: skip
    model = program.model_proto
    ours = [node for node in model.graph.node if node.domain == DOMAIN]
    assert [node.op_type for node in ours] == [GATHER.name, SCAN.name]
    for node, spec in zip(ours, (GATHER, SCAN), strict=True):
        assert {a.name: a.s.decode() for a in node.attribute} == spec.attributes()
        assert len(node.input) == len(spec.inputs)
    assert not any(f.domain == DOMAIN for f in model.functions)
    onnx.checker.check_model(model)
