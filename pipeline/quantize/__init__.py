# SPDX-License-Identifier: Apache-2.0
"""From an exported graph and a calibration table to a Q/DQ graph; ``int8.py`` has the order."""
