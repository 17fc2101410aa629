"""Signatures of what stages publish, so that who may write to a bucket cannot pass for a stage.

Off unless keys are set; both are 32 bytes in base64 (Ed25519):

    SELFALIGN_STORE_SIGNING_KEY   the private key: only stages have it, from a Secret
    SELFALIGN_STORE_VERIFY_KEY    the public key: everybody who reads; the signing key implies it

Signed are manifests, commit marks, topics, indexes of checkpoints and the pointer, each with its
place. Where a key is set, one of these without a valid signature is refused.
"""

from __future__ import annotations

import base64
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from selfalign.errors import ConfigurationError, needing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNING_VARIABLE, VERIFY_VARIABLE = "SELFALIGN_STORE_SIGNING_KEY", "SELFALIGN_STORE_VERIFY_KEY"
SIGNATURE = "signature"


def sign(key: str, checksum: str) -> str | None:
    """The signature of a document; None where signatures are off.

    Raises ConfigurationError where documents are verified and this process cannot sign.
    """
    if text := os.environ.get(SIGNING_VARIABLE):
        return base64.b64encode(_private(text).sign(_message(key, checksum))).decode()
    if os.environ.get(VERIFY_VARIABLE):
        raise ConfigurationError(
            f"{key} must be signed, because {VERIFY_VARIABLE} is set; {SIGNING_VARIABLE} is not",
            remedy="do this where the signing key is: in a stage, or with the key from its Secret",
        )
    return None


def require_signature(key: str, document: Any) -> None:
    """Raise ValueError unless signatures are off or the document has a valid one.

    Args:
        key: where in the store it was read.
        document: as stored, with the checksum that is signed.
    """
    public = _verify_key()
    if public is None:
        return
    from cryptography.exceptions import InvalidSignature

    try:
        signature = base64.b64decode(document[SIGNATURE], validate=True)
        public.verify(signature, _message(key, document["checksum"]))
    except (KeyError, TypeError, ValueError, InvalidSignature):
        raise ValueError(
            f"it is not signed by the key of {VERIFY_VARIABLE}: forged, or written without the key"
        ) from None


def _message(key: str, checksum: str) -> bytes:
    return f"selfalign {key} {checksum}".encode()


def _verify_key() -> Ed25519PublicKey | None:
    if text := os.environ.get(VERIFY_VARIABLE):
        return _public(text)
    if text := os.environ.get(SIGNING_VARIABLE):
        return _private(text).public_key()
    return None


@lru_cache(maxsize=1)
def _private(text: str) -> Ed25519PrivateKey:
    key: Ed25519PrivateKey = _ed25519().Ed25519PrivateKey.from_private_bytes(
        _raw(SIGNING_VARIABLE, text)
    )
    return key


@lru_cache(maxsize=1)
def _public(text: str) -> Ed25519PublicKey:
    key: Ed25519PublicKey = _ed25519().Ed25519PublicKey.from_public_bytes(
        _raw(VERIFY_VARIABLE, text)
    )
    return key


def _raw(variable: str, text: str) -> bytes:
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise ConfigurationError(
            f"{variable}: expected 32 bytes in base64", remedy="see docs/security.md on making keys"
        )
    return raw


def _ed25519() -> Any:
    with needing("signatures need the package cryptography", "store-signing"):
        from cryptography.hazmat.primitives.asymmetric import ed25519
    return ed25519
