"""Exit codes of the command."""

from __future__ import annotations

from stemjax import errors

DONE = 0
PROBLEM = 1
"""A problem that the message explains, and that starting again does not mend."""
USAGE = 2
CRASH = 70
"""An error that is none of ours (EX_SOFTWARE): its traceback is shown."""
TRY_AGAIN = 75
"""A problem that may be gone at the next start (EX_TEMPFAIL): a lost peer, a full disk."""
INTERRUPTED = 130
"""SIGINT; what was to be saved is saved."""
NOBODY_READS = 141
TERMINATED = 143
"""SIGTERM; likewise."""

FINAL = (DONE, PROBLEM, USAGE, INTERRUPTED, NOBODY_READS, TERMINATED)
"""Codes after which starting the same command again leads to nothing else, or is not wanted."""


def of(error: errors.StemjaxError) -> int:
    """Returns the exit code of a typed error."""
    passing = isinstance(error, errors.PeerLostError | errors.ResourceError)
    return TRY_AGAIN if passing else PROBLEM
