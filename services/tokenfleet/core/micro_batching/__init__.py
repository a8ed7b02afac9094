"""Batches for an engine that takes a whole batch at once and no more until that one has ended.

Such an engine gains by waiting a little for company, and loses by padding: each prompt of a batch is
computed at the length of the longest. `MicroBatcher` decides how long to wait and who goes together. It keeps
no clock: the time is passed in, as seconds of which only differences matter.
"""

from tokenfleet.core.micro_batching.batcher import MicroBatcher, QueueFull

__all__ = ["MicroBatcher", "QueueFull"]
