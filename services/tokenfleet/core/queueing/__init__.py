"""Flow control: who waits, in which order, for how long, and what the shed are told."""

from tokenfleet.core.queueing.drain_rate import DrainRate
from tokenfleet.core.queueing.entry import Entry, Lane
from tokenfleet.core.queueing.waiting_queue import Overflow, WaitingQueue

__all__ = ["DrainRate", "Entry", "Lane", "Overflow", "WaitingQueue"]
