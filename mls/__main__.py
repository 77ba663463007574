"""``python -m mls <command>`` is the same as ``mls <command>``."""

from mls.cli import main

if __name__ == "__main__":
    main()
