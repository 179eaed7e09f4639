"""What ended a command, as one message and an exit code."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Iterator

from moe_jax.config.errors import NO_SPACE, UserError

INTERRUPTED = 130  # 128 + SIGINT, as shells count
NO_SPACE_TEXT = re.compile(r"no space left|quota exceeded|file too large", re.IGNORECASE)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def report_error(error: BaseException, debug: bool) -> int | None:
    """Writes on stderr what ended a command, with `debug` its traceback too, and returns the exit
    code; None, and nothing is written, for an error that nobody foresaw."""
    if isinstance(error, KeyboardInterrupt):
        message, exit_code = "interrupted", INTERRUPTED
    elif (known := explain(error)) is not None:
        message, exit_code = f"error: {known[0]}", known[1]
    else:
        return None
    if debug:
        traceback.print_exception(error)
    sys.stderr.write(message.rstrip() + "\n")
    return exit_code


def explain(error: BaseException) -> tuple[str, int] | None:
    """The message and exit code of an error that a user can understand, None for any other."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED:
        return f"{error.filename}: {error.strerror}", 2
    for cause in _chain(error):
        text = str(cause)
        number = cause.errno if isinstance(cause, OSError) else None
        if number in NO_SPACE or ("RESOURCE_EXHAUSTED" in text and NO_SPACE_TEXT.search(text)):
            return f"no space left to write: {text}", 1
        if "RESOURCE_EXHAUSTED" in text or isinstance(cause, MemoryError):
            hint = "a smaller batch_size, more accumulation or model.remat needs less"
            return f"out of memory ({hint}): {text.partition(chr(10))[0]}", 1
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from: libraries wrap the one that matters."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
