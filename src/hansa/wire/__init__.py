"""What travels between a party and its coordinator: messages, tensors, chunks, and the channel."""

import os

# gRPC's C++ core prints to standard error what its Python API also raises; a user's mistake would
# show as a page of C++ log. It reads this once, so it is set before anything here imports grpc.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Its handlers of forks abort a child that is about to become another program, if calls are under way:
# some of the servers that Ray starts never came up. Nothing here forks and goes on with its calls.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
