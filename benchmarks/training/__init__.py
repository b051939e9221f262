# SPDX-License-Identifier: Apache-2.0
"""Training of the demo models: data, kernels with gradients, network, optimiser, loop."""
