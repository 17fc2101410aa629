"""The command: `selfalign`, or `python -m selfalign`."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C while its modules are still read ends it without a traceback."""
    try:
        from selfalign.cli.main import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
