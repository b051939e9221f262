# SPDX-License-Identifier: Apache-2.0
"""SpatialUnitMerge: neighbouring lines become one, their weighted mean, each image its own."""

from stormrt.plugins.spec import PluginSpec, TensorSpec

SPEC = PluginSpec(
    name="SpatialUnitMerge",
    torch_name="spatial_unit_merge",
    version="1",
    doc=(
        "y[b, c, i, j] is the mean of x[b, c, r, w] over the rows r of cell i and the columns w of "
        "cell j, weighted by row_weights[b, r] col_weights[b, w]. A cell ends where the next one "
        "starts, the last one with the map; one without weight gives 0."
    ),
    inputs=(
        TensorSpec("x", ("B", "C", "H", "W"), "T", "map"),
        TensorSpec(
            "row_starts", ("B", "H'"), "int32", "first row of each cell, strictly increasing from 0"
        ),
        TensorSpec(
            "col_starts",
            ("B", "W'"),
            "int32",
            "first column of each cell, strictly increasing from 0",
        ),
        TensorSpec("row_weights", ("B", "H"), "float32", "weight of each row, not negative"),
        TensorSpec("col_weights", ("B", "W"), "float32", "weight of each column, not negative"),
    ),
    outputs=(TensorSpec("y", ("B", "C", "H'", "W'"), "T", "the cells' weighted means"),),
)
