# SPDX-License-Identifier: Apache-2.0
"""Which layers INT8 hurts, and the fewest that have to stay in float.

    exported graph, table -> each layer alone in INT8, all else FP32 -> layers, the worst first
    ... and a budget      -> the worst k in float, as a build makes it, by bisection over k

``analyse.py`` is the whole, as ``stormrt calibrate --sensitivity`` runs it; ``ranking.py`` and
``mixed.py`` are the two lines above.

Only whole outputs are compared: what rounding does to a layer's own tensor (``gate.local_errors``)
tells little of what the layers behind it make of that. Where a STORM plan chooses other lines than
FP32 does, this is in the error, too.
"""
