"""Options that several commands share, and what they open."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from rich.console import Console

from selfalign.config import RunConfig
from selfalign.errors import ConfigurationError, json_text
from selfalign.load import LoadedConfig, load_config
from selfalign.serving.signing import VERIFY_KEY
from selfalign.store.base import Store
from selfalign.store.open import open_store
from selfalign.telemetry import log

if TYPE_CHECKING:
    from selfalign.run.executors.kubernetes.api import Cluster

DEFAULT_CONFIG = "selfalign.yaml"
_UNCUT = 10_000  # columns
_Function = TypeVar("_Function", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A number within bounds. To click, `nan` is within all of them."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def verify_option(what_it_does: str) -> Callable[[_Function], _Function]:
    """`--verify FILE`, a public key; the command takes it as `public_key`."""
    return click.option(
        "--verify",
        "public_key",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        envvar=VERIFY_KEY,
        show_envvar=True,
        help=f"A PEM public key: {what_it_does} nothing that its key did not sign.",
    )


def config_options(function: _Function) -> _Function:
    """`--config FILE` and `--set key=value`."""
    function = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one value of the configuration, e.g. --set align.sampling.temperature=0.7. "
        "May be repeated.",
    )(function)
    return click.option(
        "--config",
        "-c",
        "config_path",
        type=click.Path(path_type=Path),
        default=DEFAULT_CONFIG,
        envvar="SELFALIGN_CONFIG",
        show_envvar=True,
        help="The run's configuration, a YAML file.",
    )(function)


def store_options(function: _Function) -> _Function:
    """`--store URL`, or the store that `--config` names; the command takes them as `where`."""
    return _of_store(_as_where(function, "config_path", "overrides", "store_url"))


def cluster_options(function: _Function) -> _Function:
    """`--namespace`, `--context`, `--kubeconfig`; the command takes them as `where`."""
    return _of_cluster(_as_where(function, "namespace", "context", "kubeconfig"))


def place_options(function: _Function) -> _Function:
    """The options of both; the command takes them as `where`."""
    return _of_cluster(_of_store(_as_where(function, *Place.__dataclass_fields__)))


def _of_store(function: _Function) -> _Function:
    function = click.option(
        "--store",
        "store_url",
        metavar="URL",
        envvar="SELFALIGN_STORE",
        show_envvar=True,
        help="A directory or s3://bucket/prefix; without it, the store of --config.",
    )(function)
    return config_options(function)


def _of_cluster(function: _Function) -> _Function:
    function = click.option(
        "--kubeconfig",
        metavar="FILE",
        help="How to reach the cluster.  [default: $KUBECONFIG or ~/.kube/config; in a pod, its "
        "service account]",
    )(function)
    function = click.option("--context", metavar="NAME", help="Context of the kubeconfig.")(
        function
    )
    return click.option(
        "--namespace",
        "-n",
        metavar="NAME",
        envvar="SELFALIGN_NAMESPACE",
        show_envvar=True,
        help="Where the platform is installed.  [default: the context's namespace]",
    )(function)


def _as_where(function: _Function, *names: str) -> _Function:
    """The command with one parameter for the options of these names."""

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        where = Place(**{name: values.pop(name) for name in names})
        return function(**values, where=where)

    return cast(_Function, command)


def json_option(function: _Function) -> _Function:
    """`--json` for programs."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
    )(function)


@dataclass(frozen=True, slots=True)
class Opened:
    """A store, and the configuration it came from where there was one."""

    store: Store
    loaded: LoadedConfig | None

    @property
    def config(self) -> RunConfig:
        """The configuration; refuses when only a store was given."""
        if self.loaded is None:
            raise ConfigurationError(
                "this needs the run's configuration", remedy="give it with --config FILE"
            )
        return self.loaded.config


@dataclass(frozen=True)
class Place:
    """A store, by itself or by a configuration, or the platform of a cluster, which has one."""

    config_path: Path = Path(DEFAULT_CONFIG)
    overrides: tuple[str, ...] = ()
    store_url: str | None = None
    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    @property
    def given(self) -> bool:
        """Whether a cluster was named."""
        return bool(self.namespace or self.context or self.kubeconfig)

    def connect(self) -> Cluster:
        """Open the connection; the Kubernetes client is imported here and not before."""
        from selfalign.run.executors.kubernetes.api import connect

        return connect(self.namespace, context=self.context, kubeconfig=self.kubeconfig)

    def platform_store(self) -> str:
        """URL of the store that the platform there has; its credentials are this person's own."""
        from selfalign.run.executors.kubernetes.configuration import platform_store

        cluster = self.connect()
        found = platform_store(cluster)
        if not found:
            raise ConfigurationError(
                f"the platform in namespace {cluster.namespace} has no store configured",
                remedy=f"make deploy CONFIG=resolved.yaml NAMESPACE={cluster.namespace}",
            )
        return found

    @property
    def on_cluster(self) -> bool:
        """Whether a cluster was named and no store."""
        return self.store_url is None and self.given

    def open(self) -> Opened:
        """Open the store of `--store`, else of the platform, else of the configuration."""
        url = self.platform_store() if self.on_cluster else self.store_url
        if url is not None:
            return Opened(open_store(url), config_if_any(self.config_path, self.overrides))
        if not self.config_path.exists():
            raise ConfigurationError(
                f"{self.config_path}: no such file, so the store is not known",
                remedy="give --config FILE, or --store with a directory or s3://bucket/prefix",
            )
        loaded = load_config(self.config_path, self.overrides)
        return Opened(open_store(loaded.config.store), loaded)


def config_if_any(config_path: Path, overrides: tuple[str, ...]) -> LoadedConfig | None:
    """The configuration of a command that can do without: one that was asked for must be right,
    one that happens to lie here need not be."""
    source = click.get_current_context().get_parameter_source("config_path")
    if overrides or source is not click.core.ParameterSource.DEFAULT:
        return load_config(config_path, overrides)
    if not config_path.exists():
        return None
    try:
        return load_config(config_path)
    except ConfigurationError as error:
        log.warning("config.ignored", file=str(config_path), error=error.message)
        return None


def run_directory(store_url: str, run_id: str) -> Path:
    """Where a local run's resolved configuration and log are: in a local store, else below the
    current directory."""
    if "://" not in store_url:
        return Path(store_url) / "runs" / run_id
    return Path("selfalign-runs") / run_id


def new_console() -> Console:
    """Where a command writes its text: as wide as the terminal, and uncut where there is none."""
    # no emoji: a path or an id may hold ":cd:"
    made = Console(emoji=False)
    return made if made.is_terminal else Console(width=_UNCUT, emoji=False)


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    click.echo(json_text(value, indent=2))
