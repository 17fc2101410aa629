"""Signatures of promoted models: OpenSSF model-signing with a key pair, off by default.

`models/<digest>/model.sig` is a Sigstore bundle that holds an in-toto statement: the SHA-256 of
every file of the directory, `selfalign.json` among them. It is made from the digests that the
store knows, so nothing is downloaded to sign. Anyone can check a copy of the directory:

    model_signing verify key DIR --signature DIR/model.sig --public-key KEY.pub
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from selfalign.errors import ConfigurationError, DataError, needing
from selfalign.serving.directory import MARKER, ServedModel, directory_of
from selfalign.store.base import NotFound, PreconditionFailed, Store
from selfalign.telemetry import log

SIGNATURE = "model.sig"
SIGNING_KEY = "SELFALIGN_SIGNING_KEY"  # path of a PEM private key (P-256, P-384 or P-521)
VERIFY_KEY = "SELFALIGN_VERIFY_KEY"  # path of the PEM public key that goes with it
_LONGEST_SIGNATURE = 16 << 20


def key_file(variable: str) -> Path | None:
    """The key's file that an environment variable names; None where it is not set."""
    value = os.environ.get(variable)
    return _existing(Path(value), variable) if value else None


def sign(store: Store, served: ServedModel, private_key: Path) -> None:
    """Sign a complete directory; one that is signed stays as it is.

    Raises ConfigurationError for a key that cannot be used.
    """
    name = f"{directory_of(served.digest)}/{SIGNATURE}"
    if store.exists(name):
        return
    signing = _library("signing")
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / SIGNATURE
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=private_key)
            config.set_hashing_config(_Digests(served)).sign(scratch, written)
        except (ValueError, TypeError, OSError) as error:
            # never the library's words on a private key
            raise ConfigurationError(
                f"{private_key}: cannot sign with this key ({type(error).__name__})",
                remedy="give an unencrypted PEM private key on P-256, P-384 or P-521: "
                "openssl ecparam -name prime256v1 -genkey -noout -out KEY",
            ) from None
        try:
            store.write(name, written.read_bytes(), if_absent=True)
        except PreconditionFailed:
            return
    log.info("model.signed", signature=name)


def read_signature(store: Store, served: ServedModel) -> bytes | None:
    """The signature of a promoted model, or None where it is not signed."""
    try:
        data = store.read(f"{directory_of(served.digest)}/{SIGNATURE}")
    except NotFound:
        return None
    return data[: _LONGEST_SIGNATURE + 1]


def verify(store: Store, served: ServedModel | None, public_key: Path) -> None:
    """Check that the directory's files, by their digests in `selfalign.json`, are those signed.

    Whoever reads a file must compare it with its digest there, as `export` does.

    Raises DataError, with the reason, for a model that is not signed by this key.
    """
    if served is None:
        raise DataError(
            "only a promoted model is signed, and this one has no complete directory",
            remedy="promote it first, or ask for no verification",
        )
    where = f"{store.url}/{directory_of(served.digest)}/{SIGNATURE}"
    signature = read_signature(store, served)
    if signature is None:
        raise DataError(
            f"{where}: the model is not signed",
            remedy=f"promote with {SIGNING_KEY} set, or ask for no verification",
        )
    if len(signature) > _LONGEST_SIGNATURE:
        raise _refused(where, f"larger than {_LONGEST_SIGNATURE} bytes")
    verifying = _library("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigurationError(
            f"{public_key}: not a public key that can verify: {error}",
            remedy="give the PEM public key: openssl ec -in KEY -pubout -out KEY.pub",
        ) from error
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / SIGNATURE
        path.write_bytes(signature)
        try:
            config.set_hashing_config(_Digests(served)).verify(scratch, path)
        except Exception as error:
            raise _refused(where, str(error)[:500] or type(error).__name__) from error
    log.info("model.verified", signature=where)


class _Digests:
    """Stands where model-signing hashes a directory: the digests are known, no file is read."""

    def __init__(self, served: ServedModel) -> None:
        marker = hashlib.sha256(served.to_bytes()).hexdigest()
        self._digests = {MARKER: marker} | {file.name: file.sha256 for file in served.files}
        self._name = served.digest

    def hash(self, _directory: object, *, files_to_hash: object = None) -> Any:
        """The manifest of the files."""
        manifest = _library("manifest")
        serialization = manifest.SerializationType.from_args(
            {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            }
        )
        items = [
            serialization.new_item(name, manifest.hashing.Digest("sha256", bytes.fromhex(sha)))
            for name, sha in self._digests.items()
        ]
        return manifest.Manifest(self._name, items, serialization)

    def add_ignored_paths(self, **_: object) -> None:
        """The signature is not among the digests."""


def _library(module: str) -> Any:
    from importlib import import_module

    with needing("signatures need the package model-signing", "signing"):
        return import_module(f"model_signing.{module}")


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise ConfigurationError(
            f"{what}: {path}: no such file", remedy="mount the key there, or unset the variable"
        )
    return path


def _refused(where: str, reason: str) -> DataError:
    return DataError(
        f"{where}: the model is not what was signed: {reason}",
        remedy="do not serve it; promote again, or give the key that it was signed with",
    )
