"""What clients that misbehave cost those that do not.

`python -m benchmarks.edges` (or `make bench-edges`) holds 100 ordinary streams, alone and then beside 1,000
clients that open a stream and read next to nothing of it, and compares the time between the ordinary ones'
tokens. The gateway has a core to itself.

- `plan`          the numbers: how many of each, how fast, and how small the gateway's buffers are
- `slow_readers`  the clients that do not read, a process of their own
- `phases`        the measurement: alone, beside readers that keep up, beside slow ones
- `figures`       phases to named figures; `plot` the picture
"""
