"""What the gateway costs: processor time per streamed token, and what it adds to the first token.

`python -m benchmarks.gateway` (or `make bench-gateway`) starts a real fleet with four simulated workers, pins
the gateway to one core and everything else to another, loads it with streams of 64 tokens, and reads /proc.

- `plan`     the rows: how many streams, how fast, and what each row is for
- `systems`  what is measured: the fleet, and the bare server it is compared with
- `rows`     one row measured and judged
- `figures`  rows to named figures
- `show`     the table; `plots` the pictures
"""
