"""Which strings are store keys: one rule for every backend. No I/O here.

ASCII only, so that the order of strings, of UTF-8 bytes (S3) and of file names is one order,
and no file system can fold or normalise two keys into one.
"""

from __future__ import annotations

import re

from selfalign.errors import ConfigurationError

MAX_KEY_LENGTH = 768  # S3 allows 1024 bytes in all; 255 are left for the store's own prefix
MAX_PREFIX_LENGTH = 255
MAX_SEGMENT_LENGTH = 255  # NAME_MAX of Linux file systems
RESERVED_SEGMENT = ".selfalign"  # LocalStore keeps temporary files and locks there

_SEGMENT = r"[A-Za-z0-9._=+@-]+"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_RULE = (
    "segments of letters, digits and . _ = + @ - joined by single '/', none of them '.', '..' "
    f"or (first) {RESERVED_SEGMENT!r}, at most {MAX_SEGMENT_LENGTH} characters each and "
    f"{MAX_KEY_LENGTH} together"
)


def is_key(key: str) -> bool:
    """Whether `key` can name an object."""
    segments = key.split("/")
    return (
        len(key) <= MAX_KEY_LENGTH
        and _KEY.fullmatch(key) is not None
        and segments[0] != RESERVED_SEGMENT
        and all(s not in (".", "..") and len(s) <= MAX_SEGMENT_LENGTH for s in segments)
    )


def check_key(key: str) -> None:
    """Raise ConfigurationError unless `key` can name an object."""
    if not is_key(key):
        raise ConfigurationError(
            f"{_shown(key)}: not a store key", remedy=f"use a key made of {_RULE}"
        )


def check_prefix(prefix: str) -> None:
    """Raise ConfigurationError unless `prefix` could begin a key. Empty is every key."""
    # "a/" and "a/." are no keys but begin some: judged by a key they begin.
    if prefix and not is_key(prefix) and not is_key(prefix + "x"):
        raise ConfigurationError(
            f"{_shown(prefix)}: no store key starts like this", remedy=f"keys are made of {_RULE}"
        )


def _shown(key: str) -> str:
    return repr(key if len(key) <= 100 else key[:100] + "…")
