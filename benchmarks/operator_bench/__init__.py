# SPDX-License-Identifier: Apache-2.0
"""The parts of benchmarks/plugins.py: one file each for what is timed, how, and against what."""
