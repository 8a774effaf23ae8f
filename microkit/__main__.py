"""``python -m microkit``: the ``microkit`` command, where its script is not on the path."""

from microkit.cli import main

if __name__ == "__main__":
    main()
