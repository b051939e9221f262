# SPDX-License-Identifier: Apache-2.0
"""stormrt: VMamba models, cut down by STORM, as TensorRT engines for Jetson Orin and T4.

The package is a namespace over the folders ``pipeline/``, ``plugins/``, ``storm/``,
``calibration/``, ``targets/``, ``models/`` and ``runtime/`` (docs/adr/0001). Importing it loads
neither PyTorch, ONNX nor TensorRT: the device phase runs where only NumPy and the system's TensorRT
are installed.
"""

from pathlib import Path

__version__ = "0.1.0"

_FOLDERS = ("pipeline", "plugins", "storm", "calibration", "targets", "models", "runtime")
_broken = [name for name in _FOLDERS if not (Path(__file__).parent / name).is_dir()]
if _broken:
    raise ImportError(
        f"stormrt: {', '.join(_broken)} under {Path(__file__).parent} should be links to (or "
        "copies of) the folders of the same name, and are not. A checkout made without symbolic "
        "links (Windows, Python's zipfile) does this. Fix: `git config core.symlinks true && git "
        "checkout -- stormrt`, or install the wheel."
    )
del _broken
