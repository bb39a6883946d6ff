"""What can go wrong, by whose fault it is."""


class StickyError(Exception):
    """Base of everything this package raises on purpose.

    ``exit_status`` is what a command line should end with.
    """

    exit_status = 1


class OptionError(StickyError, ValueError):
    """Yours: an option has a value that is not allowed, or does not exist.

    The message names the option, the value, what is allowed, and what to do.
    """

    exit_status = 2


class WorkerError(StickyError):
    """Your app: the workers could not start, or what they loaded cannot be served.

    ``exit_status`` follows gunicorn: 3 when workers cannot boot, 4 when the app cannot be loaded.
    """

    exit_status = 3

    def __init__(self, message: str, exit_status: int = 3) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class ChannelError(StickyError):
    """A message between two of our own processes cannot be read: a bug, or mixed versions."""
