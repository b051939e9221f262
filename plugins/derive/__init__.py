# SPDX-License-Identifier: Apache-2.0
"""What is derived from a ``PluginSpec``: one module for each thing derived."""
