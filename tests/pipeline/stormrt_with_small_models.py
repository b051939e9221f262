# SPDX-License-Identifier: Apache-2.0
"""``stormrt`` for tests: its own command line, with the small models among the variants."""

from __future__ import annotations

import sys

from tests.pipeline.support import small_variants

if __name__ == "__main__":
    from stormrt.pipeline.cli.main import main

    sys.argv[0] = "stormrt"
    with small_variants():
        main()
