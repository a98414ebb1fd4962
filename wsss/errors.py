"""The one error that a user is meant to read."""

from __future__ import annotations


class WsssError(Exception):
    """A fault in the user's input, files or settings.

    The message is one line: it names the file, key or value and the way out. `run.py` prints it
    without a traceback and exits with code 1 (`debug=default` shows the traceback).
    """
