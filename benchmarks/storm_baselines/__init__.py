# SPDX-License-Identifier: Apache-2.0
"""What a sceptic would try instead of STORM: token reduction without structure, and simple things.

Each module has ``apply(model, where, height, width, ...)``, which returns a callable from images
to logits; ``where`` is the stage and block before which the map shrinks to height x width. The
model is dense, in evaluation mode, on any device and in either precision. Nothing here is a part
of the product.
"""
