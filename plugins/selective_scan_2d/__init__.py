# SPDX-License-Identifier: Apache-2.0
"""SelectiveScan2D: the core of VMamba's SS2D, four directions fused into one operator."""

from stormrt.plugins.spec import PluginSpec, TensorSpec

NUM_DIRECTIONS = 4
"""K: row-major, column-major, and the reverse of each, in this order."""

_MAP = ("B", "D", "H", "W")

SPEC = PluginSpec(
    name="SelectiveScan2D",
    torch_name="selective_scan_2d",
    version="1",
    doc=(
        "Four-direction selective scan over a map. Direction k visits the positions row by row "
        "(0), column by column (1), or in the reverse of these orders (2, 3). Along the visit, "
        "delta = softplus(dt + dt_bias), h_t = exp(delta a) h_(t-1) + delta b_t x_t, "
        "y_t = <c_t, h_t> + d x_t; the four results are summed at each position. All tensors "
        "are given and returned as maps, never permuted. State and exponentials are FP32."
    ),
    inputs=(
        TensorSpec("x", _MAP, "T", "input map"),
        TensorSpec("dt", ("B", "K*D", "H", "W"), "T", "step size before bias and softplus"),
        TensorSpec("b", ("B", "K*N", "H", "W"), "T", "input matrix B, shared by the channels"),
        TensorSpec("c", ("B", "K*N", "H", "W"), "T", "output matrix C, shared by the channels"),
        TensorSpec("a", ("K*D", "N"), "float32", "state matrix, -exp(A_log), negative"),
        TensorSpec("d", ("K*D",), "float32", "skip connection"),
        TensorSpec("dt_bias", ("K*D",), "float32", "added to dt before softplus"),
    ),
    outputs=(TensorSpec("y", _MAP, "T", "sum of the four directions"),),
    constants=(("K", NUM_DIRECTIONS),),
)
