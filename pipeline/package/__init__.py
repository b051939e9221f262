# SPDX-License-Identifier: Apache-2.0
"""Hand an engine over to the program that runs it on a robot or a server.

``stormrt package BUNDLE/ --for HOST --out DIR`` turns an output folder of ``stormrt build`` into
the files that a host expects: Isaac ROS, Triton, DeepStream, or a C++ program of one's own. What a
host's file may say is a frozen schema (``schema_*.py``) whose docstring names the source of its
keys; the values come from the bundle's manifest alone.

    read_model (model.py) -> files of one host (isaac_ros.py, ...) -> write_package (assemble.py)
"""
