"""The policies, pure: no wire format, no event loop, no clock and no randomness that is not passed in."""
