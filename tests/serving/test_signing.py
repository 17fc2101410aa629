"""Signatures of promoted models, made and checked by OpenSSF's library."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from selfalign.errors import ConfigurationError, DataError
from selfalign.serving.directory import MARKER, ServedModel, materialise, read_served
from selfalign.serving.export import export
from selfalign.serving.signing import SIGNATURE, sign, verify
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Manifest

from .test_directory import FILES, model

pytest.importorskip("model_signing", reason="model-signing is not installed here")


def write_keys(directory: Path) -> tuple[Path, Path]:
    """A private key and its public key."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = directory / "key", directory / "key.pub"
    directory.mkdir(exist_ok=True)
    private.write_bytes(
        key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


class Signed:
    """A store with a signed model."""

    def __init__(self, root: Path) -> None:
        self.private, self.public = write_keys(root / "keys")
        self.store = LocalStore(root / "store")
        self.manifest: Manifest = model(self.store)
        self.served: ServedModel = materialise(self.store, self.manifest, {"README.md": b"card"})
        self.prefix = f"models/{self.served.digest}/"
        sign(self.store, self.served, self.private)


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


def test_an_exported_model_is_verified_by_the_library_alone(signed: Signed, tmp_path: Path) -> None:
    from model_signing import verifying

    out = tmp_path / "out"
    export(signed.store, signed.manifest, "merged", str(out), public_key=signed.public)
    assert {path.name for path in out.iterdir()} == {*FILES, "README.md", MARKER, SIGNATURE}
    config = verifying.Config().use_elliptic_key_verifier(public_key=signed.public)
    config.verify(out, out / SIGNATURE)
    (out / "config.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match=r"Hash mismatch for 'config\.json'"):
        config.verify(out, out / SIGNATURE)


def test_the_signature_is_an_in_toto_statement_of_every_file(signed: Signed) -> None:
    bundle = json.loads(signed.store.read(signed.prefix + SIGNATURE))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    named = {each["name"] for each in statement["predicate"]["resources"]}
    assert named == {*FILES, "README.md", MARKER}


def test_a_flipped_byte_is_refused_with_the_reason_and_leaves_nothing(
    signed: Signed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    signed.store.write(signed.prefix + "model-1-of-2.safetensors", b"0")
    with pytest.raises(DataError, match=r"model-1-of-2\.safetensors: corrupt: expected SHA-256"):
        export(signed.store, signed.manifest, "merged", str(out), public_key=signed.public)
    assert not (out / MARKER).exists()


def test_a_byte_flipped_together_with_its_digest_is_refused_too(
    signed: Signed, tmp_path: Path
) -> None:
    entry = signed.served.files[0].model_copy(update={"sha256": "0" * 64})
    forged = signed.served.model_copy(update={"files": [entry, *signed.served.files[1:]]})
    signed.store.write(signed.prefix + MARKER, forged.to_bytes())
    with pytest.raises(DataError, match=f"is not what was signed: .*{entry.name}"):
        export(
            signed.store, signed.manifest, "merged", str(tmp_path / "out"), public_key=signed.public
        )
    assert not (tmp_path / "out").exists()


def test_another_key_no_signature_and_garbage_are_refused(signed: Signed, tmp_path: Path) -> None:
    _, other = write_keys(tmp_path / "other")
    with pytest.raises(DataError, match="is not what was signed"):
        verify(signed.store, signed.served, other)
    for garbage in (b"", b"{}", b"\xff" * 100, b'{"dsseEnvelope": {"payload": "e30="}}'):
        signed.store.write(signed.prefix + SIGNATURE, garbage)
        with pytest.raises(DataError, match="is not what was signed"):
            verify(signed.store, signed.served, signed.public)
    signed.store.delete(signed.prefix + SIGNATURE)
    with pytest.raises(DataError, match="the model is not signed"):
        verify(signed.store, signed.served, signed.public)
    with pytest.raises(DataError, match="only a promoted model is signed"):
        verify(signed.store, None, signed.public)


def test_a_signed_model_is_signed_once_and_a_bad_key_is_named_without_its_content(
    signed: Signed, tmp_path: Path
) -> None:
    before = signed.store.read(signed.prefix + SIGNATURE)
    sign(signed.store, signed.served, signed.private)
    assert signed.store.read(signed.prefix + SIGNATURE) == before
    signed.store.delete(signed.prefix + SIGNATURE)
    (tmp_path / "bad").write_text("-----BEGIN SECRET")
    with pytest.raises(ConfigurationError, match="cannot sign with this key") as caught:
        sign(signed.store, signed.served, tmp_path / "bad")
    assert "SECRET" not in str(caught.value)
    sign(signed.store, signed.served, signed.private)
    with pytest.raises(ConfigurationError, match="not a public key that can verify"):
        verify(signed.store, signed.served, tmp_path / "bad")
    assert read_served(signed.store, signed.served.digest) == signed.served
