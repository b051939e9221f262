# SPDX-License-Identifier: Apache-2.0
"""The numbers of preprocessing, for what needs them without decoding an image."""

from __future__ import annotations

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Per-channel mean and deviation of ImageNet, for RGB in [0, 1]."""
RESIZE_RATIO = 256 / 224
"""The resized image's side over the crop's, as in upstream's evaluation."""
