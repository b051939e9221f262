# SPDX-License-Identifier: Apache-2.0
"""``PluginSpec`` -> ONNX operator schema, registered so that the checker refuses malformed nodes.

Without a schema the ONNX checker accepts any node of a foreign domain.
"""

from __future__ import annotations

from onnx import defs

from stormrt.errors import InputError
from stormrt.plugins.spec import DOMAIN, DOMAIN_VERSION, PluginSpec

_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int32": "tensor(int32)"}


def build_schema(spec: PluginSpec) -> defs.OpSchema:
    """The ONNX schema of one operator."""

    def parameter(name: str, dtype: str, doc: str) -> defs.OpSchema.FormalParameter:
        return defs.OpSchema.FormalParameter(name, _TYPES.get(dtype, dtype), doc)

    return defs.OpSchema(
        spec.name,
        DOMAIN,
        DOMAIN_VERSION,
        doc=spec.doc,
        inputs=[parameter(t.name, t.dtype, t.doc) for t in spec.inputs],
        outputs=[parameter(t.name, t.dtype, t.doc) for t in spec.outputs],
        type_constraints=[("T", [_TYPES[d] for d in spec.io_dtypes], "Type of the maps.")],
        attributes=[
            defs.OpSchema.Attribute(
                name, defs.OpSchema.AttrType.STRING, "Names the TensorRT creator.", required=False
            )
            for name in spec.attributes()
        ],
    )


def register_schema(spec: PluginSpec) -> None:
    """Register the operator's schema, once.

    Raises:
        InputError: Another schema of the same name is registered and differs from this one.
    """
    schema = build_schema(spec)
    if not defs.has(spec.name, DOMAIN):
        defs.register_schema(schema)
        return
    registered = defs.get_schema(spec.name, DOMAIN_VERSION, DOMAIN)
    if _signature(registered) != _signature(schema):
        raise InputError(
            f"a different ONNX schema is already registered for {DOMAIN}::{spec.name}",
            got=str(_signature(registered)),
            expected=str(_signature(schema)),
            fix="two versions of stormrt are loaded in this process; load one",
        )


def _signature(schema: defs.OpSchema) -> tuple[object, ...]:
    return (
        [(p.name, p.type_str) for p in schema.inputs],
        [(p.name, p.type_str) for p in schema.outputs],
        sorted(schema.attributes),
        [(t.type_param_str, sorted(t.allowed_type_strs)) for t in schema.type_constraints],
    )
