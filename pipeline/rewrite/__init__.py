# SPDX-License-Identifier: Apache-2.0
"""Passes over the ONNX graph, one a file; ``schedule.py`` has their order."""
