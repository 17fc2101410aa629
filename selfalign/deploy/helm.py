"""`helm` for machines that lack it: the commands that the Makefile uses, by Helm's own engine.

    python -m selfalign.deploy.helm upgrade --install RELEASE CHART --namespace NAME -f FILE

The engine comes from the wheel helm-python-sdk (extra `helm`). The wheel is alpha software: use it
for tests and trials, and the real command for production clusters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import yaml

from selfalign.errors import ConfigurationError, SelfAlignError
from selfalign.load import deep_merge

Values = Mapping[str, Any]

_namespace = click.option("--namespace", "-n", required=True)
_values = click.option("--values", "-f", "files", multiple=True, type=click.Path(path_type=Path))
_chart = click.argument("chart", type=click.Path(path_type=Path, exists=True))


class HelmFailed(ConfigurationError):
    """Helm refused; the message is Helm's own."""


def merge_values(layers: Sequence[Values]) -> dict[str, Any]:
    """Merge values as `helm -f a -f b` does: maps key by key, anything else is replaced."""
    return reduce(deep_merge, map(dict, layers), {})


@contextmanager
def _engine(command: str) -> Iterator[Any]:
    """Helm's engine; what it refuses is raised as HelmFailed, after the command that was tried."""
    try:
        sdk = import_module("helm_python")
    except ImportError as e:
        raise ConfigurationError(
            "helm is not on PATH, and helm-python-sdk is not installed",
            remedy="install Helm 4 (https://helm.sh/docs/intro/install), name it with HELM=<path>, "
            "or for a trial `pip install helm-python-sdk`",
        ) from e
    try:
        yield sdk
    except sdk.HelmError as e:
        raise HelmFailed(f"helm {command}: {e}") from e


def render(chart: Path, release: str, namespace: str, values: Values) -> dict[str, str]:
    """File of the chart -> its rendered text. Raises HelmFailed."""
    with _engine(f"template {chart.name}") as sdk, sdk.Chart.load(chart) as loaded:
        loaded.validate_schema(dict(values))
        rendered = loaded.render(dict(values), name=release, namespace=namespace)
        return dict(sorted(rendered.items()))


def upgrade(chart: Path, release: str, namespace: str, values: Values) -> str:
    """Install or upgrade a release; its notes. Raises HelmFailed."""
    with _engine(f"upgrade --install {release}") as sdk, sdk.Config(namespace=namespace) as config:
        known = config.list(all_states=True, name_filter=f"^{release}$")
        apply = config.upgrade if known else config.install
        apply(chart, release, dict(values), namespace=namespace)
        return str(config.get_all(release)["info"].get("notes", ""))


def read_values(path: Path) -> dict[str, Any]:
    """A values file. Raises ConfigurationError naming the file and the line."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as e:
        raise ConfigurationError(
            f"{path}: {e.strerror}", remedy="give an existing file of values"
        ) from e
    except yaml.YAMLError as e:
        raise ConfigurationError(f"{path}: not valid YAML: {e}", remedy="correct it") from e
    if not isinstance(values, dict | None):
        raise ConfigurationError(
            f"{path}: expected a mapping of values, got {type(values).__name__}"
        )
    return values or {}


@click.group()
def helm() -> None:
    """The part of `helm` that this project's Makefile needs."""


@helm.command("upgrade")
@click.option("--install", is_flag=True, required=True)
@click.argument("release")
@_chart
@_namespace
@_values
def upgrade_command(
    install: bool, release: str, chart: Path, namespace: str, files: tuple[Path, ...]
) -> None:
    """Install or upgrade RELEASE, and print its notes."""
    values = merge_values([read_values(path) for path in files])
    click.echo(upgrade(chart, release, namespace, values))


@helm.command("uninstall")
@click.option("--ignore-not-found", is_flag=True)
@click.argument("release")
@_namespace
def uninstall_command(ignore_not_found: bool, release: str, namespace: str) -> None:
    """Remove RELEASE."""
    with _engine(f"uninstall {release}") as sdk, sdk.Config(namespace=namespace) as config:
        config.uninstall(release, ignore_not_found=ignore_not_found)
    click.echo(f'release "{release}" uninstalled')


@helm.command("package")
@_chart
@click.option("--destination", "-d", type=click.Path(path_type=Path), default=".")
def package_command(chart: Path, destination: Path) -> None:
    """Pack CHART into an archive."""
    with _engine(f"package {chart}") as sdk:
        click.echo(f"packaged {sdk.package(chart, destination=destination)}")


@helm.command("push")
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.argument("remote", metavar="oci://HOST/PATH")
@click.option("--plain-http", is_flag=True)
def push_command(archive: Path, remote: str, plain_http: bool) -> None:
    """Upload the chart in ARCHIVE, with the credentials of `helm registry login`."""
    with (
        _engine(f"push {archive.name} {remote}") as sdk,
        sdk.RegistryClient(plain_http=plain_http) as client,
    ):
        client.push(archive, remote)
    click.echo(f"pushed {archive.name} to {remote}")


def run(command: click.Command) -> None:
    """Run a command; an error ends the process with its message, remedy and exit code."""
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except SelfAlignError as error:
        click.echo(click.style("error: ", fg="red", bold=True) + str(error), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run(helm)
