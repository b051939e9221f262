# SPDX-License-Identifier: Apache-2.0
"""SpatialUnitScatter: restore the full grid from the lines that were kept, each image its own."""

from stormrt.plugins.spec import PluginSpec, TensorSpec

SPEC = PluginSpec(
    name="SpatialUnitScatter",
    torch_name="spatial_unit_scatter",
    version="1",
    doc=(
        "y[b, c, h, w] = x[b, c, row_of[b, h], col_of[b, w]]: each line of the full grid takes the "
        "values of a kept line. An index outside x is clamped to it."
    ),
    inputs=(
        TensorSpec("x", ("B", "C", "H'", "W'"), "T", "map of the kept lines"),
        TensorSpec("row_of", ("B", "H"), "int32", "kept row of each row, not decreasing"),
        TensorSpec("col_of", ("B", "W"), "int32", "kept column of each column, not decreasing"),
    ),
    outputs=(TensorSpec("y", ("B", "C", "H", "W"), "T", "map of the full grid"),),
)
