"""Prepares a process from the inside, then becomes the command: `python launch.py PARENT CPUS COMMAND…`.

Run as a script, not imported: what has to happen between fork and exec happens here in a fresh interpreter,
because running Python after a fork in a parent that has threads (gRPC's) can deadlock. The kernel is asked to
kill the command when its parent dies, so that not even a SIGKILLed supervisor leaves anything behind; where
it cannot be asked (macOS), the next fleet in the same state directory cleans up.
"""

import os
import sys

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main() -> None:
    parent, cpus, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL) != 0:
            sys.exit("launch: prctl(PR_SET_PDEATHSIG) failed")
        if cpus:
            os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])
    if os.getppid() != parent:
        sys.exit("launch: the supervisor is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"launch: cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
