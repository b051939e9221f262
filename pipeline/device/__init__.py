# SPDX-License-Identifier: Apache-2.0
"""The device phase: a bundle becomes an engine that is validated and timed, on its target.

What is imported here runs on a board with NumPy and TensorRT alone: neither pydantic nor anything
of the workstation. ``build_engine.py`` in every bundle is made of these very modules (``script``).
"""
