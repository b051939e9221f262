# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test in this folder."""

from tests.helpers.threads import one_thread  # noqa: F401  # pytest uses it by being here
