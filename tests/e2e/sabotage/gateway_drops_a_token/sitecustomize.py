"""A gateway that forgets the last token of every sequence it resumes."""

import sys

if "tokenfleet.gateway" in sys.orig_argv:
    from tokenfleet.gateway import sequence
    from tokenfleet.v1 import router_pb2, worker_pb2

    _submit = sequence.Sequence.submit

    def _forgetful(self: sequence.Sequence, placement: router_pb2.Placement, now: float) -> worker_pb2.Submit:
        if self.attempt > 1 and self.ids:
            self.ids.pop()
        return _submit(self, placement, now)

    sequence.Sequence.submit = _forgetful  # type: ignore[method-assign]
