# SPDX-License-Identifier: Apache-2.0
"""SpatialUnitGather: keep whole rows and whole columns of a map, each image its own."""

from stormrt.plugins.spec import PluginSpec, TensorSpec

SPEC = PluginSpec(
    name="SpatialUnitGather",
    torch_name="spatial_unit_gather",
    version="1",
    doc=(
        "y[b, c, i, j] = x[b, c, rows[b, i], cols[b, j]]. rows and cols increase strictly, so "
        "that the grid and the order of neighbours are kept."
    ),
    inputs=(
        TensorSpec("x", ("B", "C", "H", "W"), "T", "map"),
        TensorSpec("rows", ("B", "H'"), "int32", "kept rows, strictly increasing"),
        TensorSpec("cols", ("B", "W'"), "int32", "kept columns, strictly increasing"),
    ),
    outputs=(TensorSpec("y", ("B", "C", "H'", "W'"), "T", "the kept lines' crossings"),),
)
