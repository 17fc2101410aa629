"""What a server says of itself: which model it serves, from where, how long a text may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.config import EngineConfig
from selfalign.engines.openai.client import Client, RequestFailed
from selfalign.errors import ConfigurationError

_PROBE = "The 3 old towers:\n  naïve café, 日本語 (x != y)"  # tokenizers differ in these
_PLAIN = {"frequency_penalty": 0.0, "presence_penalty": 0.0}
# Where a request says nothing, vLLM samples by the model's generation_config.json.
_VLLM = _PLAIN | {"top_k": -1, "min_p": 0.0}


@dataclass(frozen=True, slots=True)
class Server:
    """The served model.

    Attributes:
        model: the name that requests bear.
        root: what the server loaded it from, where it says so.
        max_length: tokens of prompt and completion together.
        owner: as the server calls the model's owner; "vllm" for vLLM.
        version: of the server, where it has one.
    """

    model: str
    root: str | None
    max_length: int
    owner: str
    version: str

    @property
    def is_vllm(self) -> bool:
        """Whether it takes vLLM's further sampling parameters."""
        return self.owner == "vllm"

    def sampling(self, repetition_penalty: float) -> dict[str, Any]:
        """Fields of a request that keep the server's own defaults out.

        Raises ConfigurationError where the penalty has no name that the server is known to take.
        """
        if self.is_vllm:
            return _VLLM | {"repetition_penalty": repetition_penalty}
        if repetition_penalty == 1:
            return dict(_PLAIN)
        raise ConfigurationError(
            f"sampling.repetition_penalty is {repetition_penalty:g}, and {self.model} is served by "
            f"{self.owner!r}, which is not known to take it",
            remedy="set it to 1 in the stage's sampling and give the server's own field in "
            "engine.options, or serve the model with vLLM",
        )


def find_server(client: Client, config: EngineConfig, model: str, tokenizer: Any) -> Server:
    """The server, which must serve `model`.

    Args:
        model: a hub id, or a directory, whose last part then counts too. engine.served_model, where
            it is set, is looked for in its place.

    Raises:
        ConfigurationError: it serves none of that name, reads texts otherwise than `tokenizer`, or
            its limit is unknown or below engine.max_length.
    """
    assert config.server is not None, "checked by EngineConfig"
    url = config.server.url
    entry = _entry(_rows(client, url), config.served_model or model, url)
    _compare_origin(entry, model, url)
    served = entry.get("max_model_len")
    served = served if isinstance(served, int) and served > 0 else None
    if served is None and config.max_length is None:
        raise ConfigurationError(
            f"engine.server {url}: it does not say how many tokens {entry['id']} takes",
            remedy="set engine.max_length to what it was started with",
        )
    if served is not None and config.max_length is not None and config.max_length > served:
        raise ConfigurationError(
            f"engine.max_length is {config.max_length}, but {url} serves {entry['id']} with "
            f"{served} tokens",
            remedy=f"lower it to {served}, or start the server with a longer context",
        )
    found = Server(
        model=entry["id"],
        root=entry.get("root"),
        max_length=config.max_length or served or 0,
        owner=str(entry.get("owned_by", "unknown")),
        version=_version(client),
    )
    _compare_tokens(client, found, tokenizer, url)
    return found


def _rows(client: Client, url: str) -> list[dict[str, Any]]:
    try:
        answer = client.get("models")
    except RequestFailed as e:
        raise ConfigurationError(
            f"engine.server {url}: models: {e}", remedy="correct engine.server.url"
        ) from e
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        rows = []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def _entry(rows: list[dict[str, Any]], name: str, url: str) -> dict[str, Any]:
    for row in rows:
        names = {row["id"], str(row.get("root"))}
        if name in names:
            return row
        # a directory here may lie elsewhere there
        if Path(name).is_absolute() and Path(name).name in {Path(each).name for each in names}:
            return row
    listed = ", ".join(
        row["id"] + (f" (from {row['root']})" if row.get("root") else "") for row in rows[:8]
    )
    raise ConfigurationError(
        f"engine.server {url}: expected the model {name}, but it serves {listed or 'none'}",
        remedy="serve that model; where it is served under another name, give that name as "
        "engine.served_model (of the base model), or for a trained model serve it under its digest",
    )


def _compare_origin(entry: dict[str, Any], model: str, url: str) -> None:
    """Raise ConfigurationError where the server loaded another hub model than the run names."""
    root = entry.get("root")
    if not isinstance(root, str) or root == entry["id"]:
        return  # its own name again says nothing
    if Path(model).is_absolute() or Path(root).is_absolute() or "/" not in root or root == model:
        return
    raise ConfigurationError(
        f"engine.server {url}: {entry['id']} was loaded from {root}, but base_model.path is "
        f"{model}",
        remedy="serve the model that the run names, or correct base_model",
    )


def _version(client: Client) -> str:
    try:
        answer = client.get("/version")
        return str(answer["version"])
    except (RequestFailed, ConfigurationError, KeyError, TypeError):
        return "unknown"  # vLLM's own address


def _compare_tokens(client: Client, found: Server, tokenizer: Any, url: str) -> None:
    """Raise ConfigurationError where the server, if it tells, reads a text otherwise."""
    try:
        answer = client.post("/tokenize", {"model": found.model, "prompt": _PROBE})
        theirs = answer["tokens"]
    except (RequestFailed, ConfigurationError, KeyError, TypeError):
        return  # only some servers have it
    if not isinstance(theirs, list) or not theirs:
        return  # another server's /tokenize, which found no text where it looks for one
    ours = tokenizer(_PROBE)["input_ids"]
    if theirs != ours:
        raise ConfigurationError(
            f"engine.server {url}: {found.model} reads a text as {len(theirs)} tokens "
            f"({str(theirs[:5])[1:-1]}, …), the base model's tokenizer as {len(ours)} "
            f"({str(ours[:5])[1:-1]}, …): it is another model",
            remedy="serve the model that the run names, or correct base_model",
        )
