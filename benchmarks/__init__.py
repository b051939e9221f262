# SPDX-License-Identifier: Apache-2.0
"""Scripts that measure, and the results that they wrote: ``python -m benchmarks.NAME``."""
