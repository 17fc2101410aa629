"""What an error of boto3 means for the scheduler. botocore is imported inside functions only.

Vendors' texts are quoted with everything cut that could be a credential: query strings (signed
URLs carry a signature there), user names in URLs, access key ids, tokens.
"""

from __future__ import annotations

import re
from typing import Any

from selfalign.errors import (
    ConfigurationError,
    SelfAlignError,
    StorageFull,
    StoreDenied,
    StoreUnavailable,
    hide_secrets,
)

# Error codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_DENIED = frozenset(
    re.findall(
        r"\w+",
        """AccessDenied AllAccessDisabled AccountProblem ExpiredToken Forbidden InvalidAccessKeyId
        InvalidSecurity InvalidToken NotSignedUp RequestTimeTooSkewed SignatureDoesNotMatch
        TokenRefreshRequired UnauthorizedAccess""",
    )
)
_FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"})  # Ceph, MinIO
_UNAVAILABLE = frozenset(
    re.findall(
        r"\w+",
        """BandwidthLimitExceeded ConditionalRequestConflict NoSuchUpload OperationAborted
        PreconditionFailed RequestThrottled RequestTimeout ServiceUnavailable SlowDown Throttling
        ThrottlingException TooManyRequests""",
    )
)
_CONFLICT = frozenset({"ConditionalRequestConflict", "OperationAborted"})
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})  # HEAD has no body: the status is the code

_MAX_QUOTED = 300  # characters of a vendor's message
_SECRETS = (
    (re.compile(r"(\w://[^\s?\"'<>]*)\?[^\s\"'<>]*"), r"\1?…"),
    (
        re.compile(
            r"(?i)\b(authorization|x-amz-[a-z-]*(?:token|signature|credential)|"
            r"aws_?[a-z_]*key(?:_?id)?|(?:secret|session|security)[_ -]?(?:access[_ -]?)?"
            r"(?:key|token)|password|signature)([\"']?\s*[=:]\s*[\"']?)[^\s\"'<>,;&]+"
        ),
        r"\1\2…",
    ),
    (re.compile(r"[A-Za-z0-9+/=]{40,}"), "…"),  # a secret key has 40 characters, tokens more
)


def redact(text: str) -> str:
    """`text` in one line, without what could be a credential, cut to a readable length."""
    text = hide_secrets(text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "…"


def vendor_errors() -> tuple[type[Exception], ...]:
    """The bases of everything boto3 raises, also where an answer is not S3's."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from s3transfer.exceptions import (
        RetriesExceededError,
        S3DownloadFailedError,
        S3UploadFailedError,
        S3ValidationError,
    )
    from urllib3.exceptions import HTTPError  # the body of an error's answer breaks off

    transfer = (RetriesExceededError, S3DownloadFailedError, S3UploadFailedError, S3ValidationError)
    # It takes fields on trust, and follows a redirection of everything without end.
    foreign = (ResponseParserError, KeyError, ValueError, RecursionError)
    return (ClientError, BotoCoreError, Boto3Error, HTTPError, *transfer, *foreign)


def is_missing(error: Exception) -> bool:
    """The object is not there. For HEAD this may also mean that the bucket is not."""
    code, status = _code_and_status(error)
    return status == 404 and code in _MISSING


def is_precondition_failed(error: Exception) -> bool:
    """412: the condition of the request does not hold."""
    code, status = _code_and_status(error)
    return status == 412 or code == "PreconditionFailed"


def is_conflict(error: Exception) -> bool:
    """409: another conditional request for the key is under way; S3 asks to send this again."""
    code, status = _code_and_status(error)
    return status == 409 and code in _CONFLICT


def translate(error: Exception, where: str, action: str) -> SelfAlignError:
    """The SelfAlignError that a vendor's error stands for.

    Args:
        error: one of `vendor_errors()`.
        where: the store and key, for the message.
        action: the verb that failed, e.g. "write".
    """
    error = _innermost(error)
    code, status = _code_and_status(error)
    if code is None:
        return _translate_client_side(error, f"{where}: cannot {action}: {redact(str(error))}")
    message = redact(str(_response(error).get("Error", {}).get("Message") or "no message"))
    reason = f"{where}: cannot {action}: S3 answered {redact(code)} (HTTP {status}): {message}"
    if code in _FULL or status == 507:
        return StorageFull(reason, remedy="free space in the bucket or raise its quota")
    if code == "RequestTimeTooSkewed":
        return StoreDenied(reason, remedy="set this machine's clock")
    if code in _DENIED or status in (401, 403):
        return StoreDenied(
            reason,
            remedy="check the credentials of this process (service account, role, environment) "
            "and allow s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload on the prefix "
            "and s3:ListBucket on the bucket; without ListBucket a missing object looks denied",
        )
    if code == "NoSuchBucket":
        return ConfigurationError(reason, remedy="create the bucket, or correct its name")
    if status == 501:
        return ConfigurationError(
            reason,
            remedy="this server lacks what a store needs: conditional writes, or checksums "
            "(which SELFALIGN_S3_CHECKSUMS=when_required leaves out)",
        )
    if code in _UNAVAILABLE or status in (408, 429) or status >= 500:
        return StoreUnavailable(reason, remedy="try again; look at the state of the S3 service")
    return ConfigurationError(
        reason,
        remedy="check endpoint, region, addressing style, KMS key and whether the credentials have "
        "expired; a server that refuses checksums needs SELFALIGN_S3_CHECKSUMS=when_required",
    )


def _translate_client_side(error: Exception, reason: str) -> SelfAlignError:
    """Errors without an answer from S3: connections, credentials, configuration."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    denied = (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.NoAuthTokenError,
        boto.TokenRetrievalError,
        boto.SSOError,
    )
    unavailable = (
        boto.ConnectionError,
        boto.HTTPClientError,
        boto.IncompleteReadError,
        boto.ChecksumError,
        boto.FlexibleChecksumError,
        boto.CredentialRetrievalError,  # the agent or STS may be back in a moment
        boto.MetadataRetrievalError,
    )
    if isinstance(error, ResponseParserError | KeyError | ValueError | RecursionError):
        return StoreUnavailable(
            f"{reason} ({type(error).__name__}): the answer is none of S3's",
            remedy="see that the endpoint is that of an S3 server, and that no proxy or login page "
            "answers in its place",
        )
    if isinstance(error, denied):
        return StoreDenied(
            reason,
            remedy="give the process credentials by the default chain: a service account with a "
            "role, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
        )
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ConfigurationError(reason, remedy="name the server's CA in AWS_CA_BUNDLE")
    if isinstance(error, unavailable) or not isinstance(error, boto.BotoCoreError):
        return StoreUnavailable(
            reason,
            remedy="check the network and the endpoint (AWS_ENDPOINT_URL_S3 or "
            "SELFALIGN_S3_ENDPOINT_URL), then try again",
        )
    return ConfigurationError(reason, remedy="check the AWS settings of this process")


def _innermost(error: Exception) -> Exception:
    """boto3's transfer errors wrap the one that tells what happened."""
    last = getattr(error, "last_exception", None)  # RetriesExceededError
    if isinstance(last, Exception):
        return last
    if type(error).__name__ == "S3UploadFailedError" and isinstance(error.__context__, Exception):
        return _innermost(error.__context__)
    if isinstance(error.__context__, RecursionError):  # HTTPClientError, by where it was caught
        return error.__context__
    return error


def _response(error: Exception) -> dict[str, Any]:
    response = getattr(_innermost(error), "response", None)
    return response if isinstance(response, dict) else {}


def _code_and_status(error: Exception) -> tuple[str | None, int]:
    """The error code and HTTP status of S3's answer; (None, 0) when there was none."""
    response = _response(error)
    code = response.get("Error", {}).get("Code")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return (None if code is None else str(code)), int(status)
