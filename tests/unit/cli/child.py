"""A process to be supervised: answers PING on a Unix socket, like a store; flags make it misbehave.

child.py SOCKET [--exit CODE] [--deaf] [--grandchild] [--orphan]
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

SLEEPER = [sys.executable, "-I", "-S", "-c", "import signal; print('asleep', flush=True); signal.pause()"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    parser.add_argument("--exit", type=int, help="leave at once with this code")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--grandchild", action="store_true", help="start a process and forget it")
    parser.add_argument("--orphan", action="store_true", help="the same, in a session of its own")
    flags = parser.parse_args()
    print(f"child {os.getpid()} starts", flush=True)
    if flags.exit is not None:
        print("cannot go on: as told", flush=True)
        sys.exit(flags.exit)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if flags.deaf else lambda *_: sys.exit(0))
    if flags.grandchild or flags.orphan:
        sleeper = subprocess.Popen(SLEEPER, start_new_session=flags.orphan, stdout=subprocess.PIPE)
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        print(f"grandchild {sleeper.pid}", flush=True)
    serve(flags.socket)


def serve(path: Path) -> None:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    while True:
        connection, _ = listener.accept()
        while connection.recv(64):
            connection.sendall(b"+PONG\r\n")


if __name__ == "__main__":
    main()
