"""``python -m quantkit``, and the command ``quantkit``."""

import sys


def main() -> int:
    """Run one command; Ctrl-C is told in one line also while the command line is imported."""
    try:
        from quantkit.cli import main as run
    except KeyboardInterrupt:
        print("error: interrupted before anything was done", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
