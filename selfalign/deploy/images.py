"""Names and tags of the images that `images/build` builds."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Literal

from selfalign import __version__
from selfalign.errors import ConfigurationError

Variant = Literal["gpu", "cpu"]
VARIANTS: tuple[Variant, ...] = ("gpu", "cpu")
LOCAL_REGISTRY = "localhost/selfalign"  # never pushed; a node must have the images already
# What an image is made of beside its base. A change of it changes the tag.
_CODE = ("selfalign", "images", "pyproject.toml", "constraints.txt", ".dockerignore")


def code_tag(root: Path, variant: Variant) -> str:
    """Code version and commit, and the digest of uncommitted changes where there are any."""
    tag = f"{__version__}-g{_git(root, 'rev-parse', '--short=9', 'HEAD')}"
    if _git(root, "status", "--porcelain", "--", *_CODE):
        tag += f".{_digest(root)}"
    return tag if variant == "gpu" else f"{tag}-{variant}"


def _digest(root: Path) -> str:
    hasher = hashlib.sha256()
    for path in map(root.joinpath, _CODE):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                hasher.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return hasher.hexdigest()[:9]


def _git(root: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as e:
        raise ConfigurationError(
            f"{root}: git {arguments[0]} does not work, so the images have no tag",
            remedy="work in a git checkout, or give IMAGE_TAG=...",
        ) from e
    return result.stdout.strip()
