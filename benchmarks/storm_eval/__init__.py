# SPDX-License-Identifier: Apache-2.0
"""The table of storm_accuracy.py: its rows, the images, evaluation, timing, and its rendering."""
