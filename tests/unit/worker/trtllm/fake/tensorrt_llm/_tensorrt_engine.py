"""The same API on engines that were built ahead."""

from tensorrt_llm import LLM

__all__ = ["LLM"]
