# SPDX-License-Identifier: Apache-2.0
"""A package, so that no other package of this name can stand in for it."""
