"""One file for each figure or table of the paper: `python -m experiments.NAME`."""

import os
import signal
import sys


def _quit(number: int, frame: object) -> None:
    print("error: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # as a command, and before anything slow is imported
    signal.signal(signal.SIGINT, _quit)
    signal.signal(signal.SIGTERM, _quit)
    # A notebook's shell passes on a backend that is not there; commands write files.
    os.environ["MPLBACKEND"] = "agg"
