# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a machine, an engine or a message, and what mends it.

- ``inventory``: what is installed and what each piece is needed for.
- ``complaints/``: the commonest complaints about TensorRT, one a file: symptoms, cause, mend, a
  check, sources. ``examine`` runs the checks on `Facts`, ``explain`` finds a pasted message among
  the symptoms, ``document`` writes docs/troubleshooting.md.

Importing this imports none of what it looks at: a machine on which nothing works is the one that
asks.
"""

from stormrt.pipeline.doctor.inventory import Check, run_checks

__all__ = ["Check", "run_checks"]
