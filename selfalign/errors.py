"""Errors are verbs for the scheduler: each class says whether trying again can help.

SelfAlignError
├── PermanentError            never retry: the same inputs fail the same way
│   ├── ConfigurationError    2   configuration, seeds or command line are wrong
│   │   ├── ClusterRejected       the API server finds an object wrong
│   │   ├── HelmFailed            Helm finds a chart or its values wrong
│   │   └── NightlyOverlap        a nightly run is refused while another one is running
│   ├── DataError             3   an artifact, a model or a data file is wrong, corrupt or empty
│   │   └── UnknownModel          a request names a model that is not served
│   └── StoreDenied           4   the store refuses these credentials
│       └── ClusterDenied         the API server refuses these credentials, or a policy the object
└── TemporaryError           75   retry later, bounded
    ├── ArtifactBusy              another run is making the same artifact
    ├── Condemned            73   gc is about to delete what is asked for
    ├── Collecting                another gc is at work on the store
    ├── LeftOver                  an object of an earlier run of the same name still exists
    ├── NotDeployed               a stage has no template on the cluster
    ├── StoreUnavailable     69   the store cannot be reached or keeps failing
    │   └── ClusterUnavailable    the API server cannot be reached
    ├── EngineError          70   generation or training failed inside the engine
    ├── OutOfMemory          71   the engine ran out of device or host memory
    └── StorageFull          74   no space left, or the local disk fails
Interrupted                 130   stopped by SIGINT; 143 by SIGTERM; everything done is kept

The exit code of a process follows from the class; `EXIT_CODES` is what podFailurePolicy and
the controller match. Any other exception is a bug and exits with 1.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar


class SelfAlignError(Exception):
    """Base of every expected error. The message says where, what was expected, what was got.

    Args:
        message: where it happened, what was expected and what was found.
        remedy: what the reader can do about it, as one sentence.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        self.message = printable(hide_secrets(message))
        super().__init__(self.message)
        self.remedy = None if remedy is None else printable(hide_secrets(remedy))

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


# Control characters except tab and line feed, and those that turn the direction of text around.
_STEERING = {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_ESCAPES = {code: ascii(chr(code))[1:-1] for code in _STEERING - {0x09, 0x0A}}


def printable(text: str) -> str:
    """`text` with the characters escaped that would steer a terminal, since a model or a bucket may
    have written it, and bytes of file names that are no UTF-8, which no stream takes."""
    return text.encode(errors="backslashreplace").decode().translate(_ESCAPES)


_JSON_ESCAPES = {
    code: f"\\u{code:04x}" for code in _STEERING if code >= 0x7F
}  # json escapes the rest


def json_text(value: Any, **options: Any) -> str:
    """`value` as JSON that any stream takes, steers no terminal and reads back as it was."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return text.encode(errors="backslashreplace").decode().translate(_JSON_ESCAPES)


# What is a secret wherever it stands. A user's name and password in a URL end at the last "@"; the
# pattern takes what follows it too, so that a long text is read once and not from each "://" on.
_SECRETS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(r"(\w://)([^\s\"'<>]*)"),
        lambda url: f"{url[1]}…@{url[2].rpartition('@')[2]}" if "@" in url[2] else url[0],
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), r"\1 …"),
    (re.compile(r"\bhf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}"), "hf_…"),  # not hf_overrides
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{8,}"), "…"),
    (re.compile(r"\beyJ[\w-]{10,}(?:\.[\w-]+)*"), "…"),  # a JSON web token
)


def hide_secrets(text: str) -> str:
    """`text` without passwords in URLs, tokens and key ids: for errors and logs."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class PermanentError(SelfAlignError):
    """The same inputs will fail in the same way: end the run, show the message."""


class ConfigurationError(PermanentError):
    """Configuration, seeds or command line are wrong."""

    exit_code = 2


class DataError(PermanentError):
    """An artifact, model or data file is missing, corrupt, empty or of the wrong shape."""

    exit_code = 3


class StoreDenied(PermanentError):
    """The store understood the request and refuses it for these credentials."""

    exit_code = 4


class TemporaryError(SelfAlignError):
    """Another attempt may succeed."""

    exit_code = 75  # EX_TEMPFAIL
    retryable = True


class Condemned(TemporaryError):
    """What was asked for is being deleted by `selfalign gc`; afterwards it can be made anew."""

    exit_code = 73


class StoreUnavailable(TemporaryError):
    """The store cannot be reached, or fails in a way that passes."""

    exit_code = 69


class EngineError(TemporaryError):
    """The generation or training engine failed."""

    exit_code = 70


class OutOfMemory(TemporaryError):
    """Device or host memory ran out inside an engine."""

    exit_code = 71


# Of RuntimeErrors: torch's allocator for hosts, and what cuBLAS, cuDNN and CUDA take beside it.
_MEMORY_SIGNS = (
    *("allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
    "CUDA error: out of memory",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether device or host memory ran out, whichever library says so."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"  # torch.OutOfMemoryError: CUDA
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MEMORY_SIGNS))
    )


class StorageFull(TemporaryError):
    """No space left on the device, or the disk fails."""

    exit_code = 74


class Interrupted(BaseException):
    """Stopped by a signal; everything finished so far is committed.

    No SelfAlignError: whoever goes on after an error must not go on after a signal.
    """

    remedy = None

    def __init__(self, signal_number: int) -> None:
        self.message = f"stopped by signal {signal_number}; finished work is kept"
        super().__init__(self.message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number  # 130 SIGINT, 143 SIGTERM


@contextlib.contextmanager
def needing(what: str, extra: str, instead: str = "") -> Iterator[None]:
    """Tell an ImportError inside as a package that is not installed.

    Args:
        what: who needs which package.
        extra: of selfalign, which brings it.
        instead: what else the reader can do, for the end of the remedy.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"{what}, which is not installed", remedy=f"pip install 'selfalign[{extra}]'{instead}"
        ) from error


EXIT_CODES: dict[int, type[SelfAlignError]] = {
    cls.exit_code: cls
    for cls in (
        ConfigurationError,
        DataError,
        StoreDenied,
        StoreUnavailable,
        EngineError,
        OutOfMemory,
        StorageFull,
        Condemned,
        TemporaryError,
    )
}
PERMANENT_EXIT_CODES: tuple[int, ...] = tuple(
    sorted(code for code, cls in EXIT_CODES.items() if issubclass(cls, PermanentError))
)
# Whose attempts cost nothing: gc is at work, 128 + SIGINT, 128 + SIGTERM.
UNCHARGED_EXIT_CODES: tuple[int, ...] = (Condemned.exit_code, 130, 143)
