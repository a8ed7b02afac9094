"""A load generator that is cheaper than what it loads.

The gateway's aim is some fifteen microseconds a token, so a client library that costs fifty would measure
itself. This one speaks HTTP/1.1 on a bare uvloop protocol, decodes chunks, and counts server-sent events
with `bytes.count`; JSON is parsed once a stream, for the frames that carry no text. It still refuses to be
fooled: a bad status, an error event, a missing `[DONE]`, an answer of the wrong length or a stream that falls
silent each count as a failure with its reason.
"""
