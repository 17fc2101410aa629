"""Images by digest: in the values of what is deployed, and in the charts of a release.

The charts of a release are copies whose default values name this version's images.

Reads charts/, jobs/, CHANGELOG.md and the digests that `images/build` wrote; writes one directory
for each chart, to be packaged. The checkout itself never changes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from selfalign import __version__
from selfalign.deploy.helm import Values, merge_values
from selfalign.deploy.releases import PLATFORM, SERVING, release_name
from selfalign.deploy.schema import CHARTS
from selfalign.errors import ConfigurationError
from selfalign.pipeline import STAGES

_STAGES = tuple(stage.name for stage in STAGES)
# Chart -> its images: name of the image, and the value that holds its digest.
_IMAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "selfalign": {"controller": ("image", "digest")},
    "serving": {"align": ("image", "digest"), "promote": ("fetch", "image", "digest")},
    "stage": {name: ("image", "digests", name) for name in _STAGES},
}
# The same by the release that `make deploy`, `deploy-stage` and `deploy-serving` install.
IMAGES_OF_RELEASES: dict[str, dict[str, tuple[str, ...]]] = {
    PLATFORM: _IMAGES["selfalign"],
    SERVING: _IMAGES["serving"],
    **{release_name(name): {name: ("image", "digest")} for name in _STAGES},
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# Sections of Keep a Changelog are Artifact Hub's kinds of changes.
_SECTION = re.compile(r"^## \[?([^\]\n]+)\]?.*$", re.MULTILINE)


def read_digests(path: Path) -> dict[str, str]:
    """Image -> digest, from lines `NAME sha256:...`. Raises ConfigurationError for other lines."""
    digests = {}
    for line in path.read_text("utf-8").splitlines():
        name, _, digest = line.partition(" ")
        if not _DIGEST.fullmatch(digest):
            raise ConfigurationError(
                f"{path}: {line!r}: expected NAME sha256:<64 hex digits>",
                remedy="`make release` writes it; push with docker, podman or buildah",
            )
        digests[name] = digest
    return digests


def write_charts(
    root: Path, out: Path, *, registry: str, tag: str, digests: Mapping[str, str]
) -> list[Path]:
    """Copy every chart to `out`, with its images and this version's changes written in.

    Args:
        tag: of images without a digest, which were not pushed.
        digests: by image. Where there are some, each image must have one.

    Returns:
        The directories of the charts.
    """
    written = []
    for chart in CHARTS:
        target = out / chart
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(root / "charts" / chart, target, ignore=shutil.ignore_patterns("ci"))
        if chart == "stage":  # what each stage's release is installed with
            shutil.copytree(root / "jobs", target / "jobs")
        values = target / "values.yaml"
        changes = image_values(chart, registry=registry, tag=tag, digests=digests)
        values.write_text(with_values(values.read_text("utf-8"), changes), "utf-8")
        _annotate(target / "Chart.yaml", root, _references(chart, registry, tag, digests))
        written.append(target)
    return written


def image_values(
    chart: str, *, registry: str, tag: str, digests: Mapping[str, str]
) -> dict[tuple[str, ...], Any]:
    """Path of a value -> what it becomes in this release."""
    changes: dict[tuple[str, ...], Any] = {("image", "registry"): registry}
    if not digests:
        return {**changes, ("image", "tag"): tag}
    missing = sorted(set(_IMAGES[chart]) - set(digests))
    if missing:
        raise ConfigurationError(
            f"charts/{chart}: no digest of {', '.join(missing)}",
            remedy="push all images (`make release REGISTRY=...` without SKIP_BUILD)",
        )
    if chart == "stage":
        return {**changes, ("image", "digests"): {name: digests[name] for name in _STAGES}}
    return changes | {path: digests[name] for name, path in _IMAGES[chart].items()}


def with_digests(values: Values, digests: Mapping[tuple[str, ...], str]) -> dict[str, Any]:
    """A release's values with these digests at their places."""
    layers: list[Values] = [values]
    for place, digest in digests.items():
        layer: Any = digest
        for name in reversed(place):
            layer = {name: layer}
        layers.append(layer)
    return merge_values(layers)


def with_values(text: str, changes: Mapping[tuple[str, ...], Any]) -> str:
    """A values file with other defaults, its comments kept.

    Raises ConfigurationError for a path that the file does not have.
    """
    spans = []
    for path, value in changes.items():
        node: Any = yaml.compose(text)
        for name in path:
            found = [child for key, child in node.value if key.value == name]
            if not found:
                raise ConfigurationError(f"values.yaml has no {'.'.join(path)}")
            (node,) = found
        spans.append((node.start_mark.index, node.end_mark.index, json.dumps(value)))
    for start, end, value in sorted(spans, reverse=True):
        text = text[:start] + value + text[end:]
    return text


def changes_of(changelog: str, version: str) -> list[dict[str, str]]:
    """What a version changed, as Artifact Hub reads it. Raises ConfigurationError where the
    changelog does not know the version."""
    pieces = _SECTION.split(changelog)
    sections = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    if version not in sections:
        raise ConfigurationError(
            f"CHANGELOG.md: no section of {version}, only of {', '.join(list(sections)[:5])}",
            remedy="name what is unreleased after the version in selfalign/_version.py",
        )
    found = []
    for part in sections[version].split("\n### ")[1:]:
        kind, _, body = part.partition("\n")
        for bullet in re.split(r"^- ", body, flags=re.MULTILINE)[1:]:
            said = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(bullet.split()))
            found.append({"kind": kind.strip().lower(), "description": said})
    return found


def _references(chart: str, registry: str, tag: str, digests: Mapping[str, str]) -> Any:
    return [
        {
            "name": name,
            "image": f"{registry}/{name}" + (f"@{digests[name]}" if digests else f":{tag}"),
        }
        for name in _IMAGES[chart]
    ]


def _annotate(chart: Path, root: Path, references: Any) -> None:
    metadata = yaml.safe_load(chart.read_text("utf-8"))
    changes = changes_of((root / "CHANGELOG.md").read_text("utf-8"), __version__)
    lists = {"artifacthub.io/images": references, "artifacthub.io/changes": changes}
    for name, value in lists.items():
        metadata["annotations"][name] = yaml.safe_dump(value, sort_keys=False, width=200)
    chart.write_text(yaml.safe_dump(metadata, sort_keys=False), "utf-8")
