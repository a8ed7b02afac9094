"""`tokenfleet chat`: one question, or a conversation, with a fleet."""

from tokenfleet.cli.chat.command import ChatOptions, run_chat

__all__ = ["ChatOptions", "run_chat"]
