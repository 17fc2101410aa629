"""Values of the platform's and the stages' releases, and what is refused before they are installed.

Layers, later ones winning: CONFIG (a run configuration), jobs/<stage>.yaml, jobs/variants/cpu.yaml
where VARIANT=cpu, files of the user's, the image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from selfalign.config import RunConfig
from selfalign.deploy.helm import Values, merge_values, read_values
from selfalign.deploy.images import Variant
from selfalign.errors import ConfigurationError, StoreDenied, StoreUnavailable
from selfalign.inputs import unstored
from selfalign.load import validate_config
from selfalign.pipeline import BY_NAME, STAGES
from selfalign.store.open import open_store

PLATFORM = "selfalign"
SERVING = "selfalign-serving"


def release_name(stage: str) -> str:
    """The release, CronJob and Service of a stage."""
    return f"{PLATFORM}-{stage}"


def require_stage(name: str | None) -> str:
    """The stage's name, or a refusal that lists them."""
    known = ", ".join(stage.name for stage in STAGES)
    if not name:
        raise ConfigurationError("STAGE is missing", remedy=f"STAGE=<one of {known}>")
    if name not in BY_NAME:
        raise ConfigurationError(
            f"STAGE is {name!r}, which is no stage", remedy=f"choose one of {known}"
        )
    return name


def _values(
    *before: Path, files: Sequence[Path], image: Values | None, config: Path | None = None
) -> dict[str, Any]:
    layers: list[Values] = [{"config": read_values(config)}] if config else []
    layers += map(read_values, [*before, *files])
    return merge_values([*layers, {"image": image}] if image else layers)


def _variant(root: Path, name: str, variant: Variant) -> list[Path]:
    return [] if variant == "gpu" else [root / "jobs" / "variants" / f"{name}{variant}.yaml"]


def stage_values(
    root: Path,
    stage: str,
    *,
    variant: Variant,
    files: Sequence[Path] = (),
    config: Path | None = None,
    image: Values | None = None,
) -> dict[str, Any]:
    """The values of a stage's release.

    Args:
        files: the user's, in their order.
        config: a run configuration, to make the release's own complete.
    """
    before = [root / "jobs" / f"{stage}.yaml", *_variant(root, "", variant)]
    values = _values(*before, files=files, image=image, config=config)
    if config is None:  # a file shared by all stages brings other stages' sections along
        others = set(BY_NAME) - {stage}
        own = {k: v for k, v in (values.get("config") or {}).items() if k not in others}
        values["config"] = own
    return values


def serving_values(
    root: Path, *, variant: Variant, files: Sequence[Path] = (), image: Values | None = None
) -> dict[str, Any]:
    """The values of the release that serves the promoted model."""
    return _values(*_variant(root, "serving-", variant), files=files, image=image)


def platform_values(
    *, files: Sequence[Path] = (), config: Path | None = None, image: Values | None = None
) -> dict[str, Any]:
    """The values of the platform's release; the files' own `config` wins over `config`, in which
    every key has a value."""
    return _values(files=files, image=image, config=config)


def check_platform_config(values: Values, stages: Iterable[Values]) -> RunConfig:
    """Refuse a configuration that no run could use, before anything is installed.

    It is merged as the controller merges it: the platform's, then each stage's own section.
    """
    config: dict[str, Any] = dict(values.get("config") or {})
    for section in stages:
        name = section["stage"]
        own = (section.get("config") or {}).get(name)
        config = merge_values([config, {name: own}]) if own else config
    if not str(config.get("store") or "").startswith("s3://"):
        raise ConfigurationError(
            f"config.store is {config.get('store')!r}, expected s3://bucket/prefix",
            remedy="name the bucket in the configuration (CONFIG=...) or the platform's values "
            "(VALUES=...); pods share nothing else",
        )
    checked = validate_config(config, "the platform's configuration with the stages'")
    if local := [f"{name}: {path}" for name, path in unstored(checked).items()]:
        raise ConfigurationError(
            f"pods cannot reach what is on this machine: {'; '.join(local)}",
            remedy="`selfalign inputs push --config FILE --out resolved.yaml` uploads it once; "
            "then CONFIG=resolved.yaml. A mounted model needs its revision",
        )
    return checked


def check_bucket(store_url: str, environment: Values) -> str | None:
    """Refuse a bucket that is not there; None, or why that could not be found out from here."""
    for name, value in environment.items():
        os.environ.setdefault(name, str(value))
    try:
        next(iter(open_store(store_url).list("runs/")), None)
    except (StoreDenied, StoreUnavailable) as e:
        return e.message
    return None


def leave_resource_alone(values: dict[str, Any], owner: str | None, namespace: str) -> str | None:
    """Leave the cluster-wide AlignmentRun resource to whom it belongs, where that is somebody else.

    Args:
        values: of the platform; changed where the resource is not this release's.
        owner: as `cluster.resource_owner` returns it.

    Returns:
        What a person should know, or None where this release makes or upgrades the resource.
    """
    crd = values.setdefault("crd", {})
    if owner in (None, f"{namespace}/{PLATFORM}") or crd.get("create") is False:
        return None
    crd["create"] = False
    whose = f"belongs to the release {owner}" if owner else "was not made by Helm"
    return (
        f"the AlignmentRun resource {whose} and is left as it is; where this version needs a newer "
        "one: kubectl apply --server-side --force-conflicts -f "
        "charts/selfalign/files/alignmentruns.selfalign.io.yaml"
    )
