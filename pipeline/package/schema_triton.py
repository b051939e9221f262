# SPDX-License-Identifier: Apache-2.0
"""What ``config.pbtxt`` of Triton may say, as far as a TensorRT plan needs it.

Sources:

- field names and types: ``protobuf/model_config.proto`` of triton-inference-server/common (the
  package ``tritonclient`` has it compiled, which the tests read the file with);
- where the batch goes: ``CompareDimsSupported`` in ``src/tensorrt_utils.cc`` of
  triton-inference-server/tensorrt_backend. With ``max_batch_size`` above 0 the plan's first
  dimension must be -1; a plan with a fixed batch has ``max_batch_size: 0``, and its batch is the
  first of ``dims``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Dims = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, strict=False)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Input(_Message):
    """``ModelInput``."""

    name: str
    data_type: Literal["TYPE_FP32"]
    dims: Dims


class Output(_Message):
    """``ModelOutput``."""

    name: str
    data_type: Literal["TYPE_FP32"]
    dims: Dims
    label_filename: str
    """Beside ``config.pbtxt``; what the classification extension answers with."""


class InstanceGroup(_Message):
    """``ModelInstanceGroup``."""

    kind: Literal["KIND_GPU"] = "KIND_GPU"
    count: Annotated[int, Field(gt=0)] = 1


class DynamicBatching(_Message):
    """``ModelDynamicBatching``, with its defaults."""


class ModelConfig(_Message):
    """``ModelConfig``."""

    name: str
    platform: Literal["tensorrt_plan"] = "tensorrt_plan"
    max_batch_size: Annotated[int, Field(ge=0)]
    default_model_filename: str
    input: Annotated[tuple[Input, ...], Field(strict=False)]
    output: Annotated[tuple[Output, ...], Field(strict=False)]
    instance_group: Annotated[tuple[InstanceGroup, ...], Field(strict=False)]
    dynamic_batching: DynamicBatching | None = None
    """The server gathers requests into batches; only where the plan takes more than one size."""


ENUMERATED = ("data_type", "kind")
"""Fields whose values are names of an enumeration, which the text format has without quotes."""
