"""`python -m marcli`, the console script, and what `torchrun -m marcli` starts."""

import signal
import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules load Ctrl-C ends the process without a traceback

    from marcli.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
