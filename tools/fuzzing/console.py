"""What commands print, as text, without a process of their own."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable


def plain_output(show: Callable[[], object]) -> str:
    """Everything that is printed to standard output meanwhile, which is no terminal."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        show()
    return output.getvalue()
