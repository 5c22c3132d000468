"""`python -m chaos`, which is also `understudy chaos`. Next: `command.py`."""

import os

# Read when gRPC is imported: its handlers of forks abort programs that are started while its threads are at work.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from chaos.command import main

if __name__ == "__main__":
    main(prog_name="understudy chaos")
