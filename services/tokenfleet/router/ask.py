"""A request in the router: what the scheduler needs, and whom to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenfleet.core.scheduling import Request

if TYPE_CHECKING:
    from tokenfleet.router.session import Session


@dataclass(slots=True, eq=False, kw_only=True)
class Ask(Request):
    """`session` is the gateway's stream, `ask_id` the gateway's name for the request on it."""

    session: Session
    ask_id: int
    received_at: float  # on the performance counter, for the time a decision took
