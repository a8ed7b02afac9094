"""A gateway that forgets the last token of every sequence it resumes."""

import sys

if "tokenfleet.gateway" in sys.orig_argv:
    from tokenfleet.gateway import sequence
    from tokenfleet.v1 import router_pb2, worker_pb2

    _fill = sequence.Sequence.fill

    def _forgetful(
        self: sequence.Sequence, submit: worker_pb2.Submit, placement: router_pb2.Placement, now: float
    ) -> None:
        if self.attempt > 1 and self.ids:
            self.ids.pop()
        _fill(self, submit, placement, now)

    sequence.Sequence.fill = _forgetful  # type: ignore[method-assign]
