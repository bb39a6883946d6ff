"""``python -m sticky``: the same as the command ``sticky``."""

from .cli import main

if __name__ == "__main__":
    main(prog="python -m sticky")
