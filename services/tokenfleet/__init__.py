"""Large-language-model serving as a fleet of small services."""

import os

# Read when grpc is first imported, hence here. gRPC's core otherwise meddles with every fork, in case the
# child goes on using it; ours start another program at once, and some crashed before they got there.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

__version__ = "0.1.0"
