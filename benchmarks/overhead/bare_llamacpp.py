"""llama.cpp's own HTTP server with the settings of a worker's: `python -m benchmarks.overhead.bare_llamacpp`.

Its configuration is the first line of standard input, as that of the worker's child is; it ends with it.
"""

from __future__ import annotations

import json
import sys

import xllamacpp

from tokenfleet.worker.engines.llamacpp import child


def main() -> None:
    config = json.loads(sys.stdin.readline())
    server = child.start({**config, "socket": "127.0.0.1"}, port=config["port"])
    assert isinstance(server, xllamacpp.Server)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
