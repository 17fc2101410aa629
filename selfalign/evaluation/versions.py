"""Which published version an evaluation set is, by the number of its items."""

from __future__ import annotations

from collections import Counter

from selfalign.config import EvaluateConfig
from selfalign.evaluation.datasets import load_heldout
from selfalign.evaluation.multiple_choice import SUITES
from selfalign.identity import data_path, is_default, path_sha256

# Number of items -> what it is. Counted in the published files, or by whoever published them.
_KNOWN: dict[str, dict[int, str]] = {
    "HHH": {221: "BIG-bench"},
    "TruthfulQA": {817: "2021", 790: "January 2025"},
    "XSTest": {450: "v2"},
    "StrongREJECT": {313: "2024"},
    "IFEval": {541: "2023"},
}
_TITLES = {"hhh": "HHH", "truthfulqa": "TruthfulQA"}
_SETS = {
    "xstest_safe": "XSTest",
    "xstest_unsafe": "XSTest",
    "strongreject": "StrongREJECT",
    "ifeval": "IFEval",
}  # by the kind of a held-out item


def describe_data(config: EvaluateConfig) -> dict[str, str]:
    """What each evaluation file that is named holds, for people: sets, versions, items, digest.

    `{"truthfulqa": "TruthfulQA 2021, 817 items (sha256 0123456789ab)"}`. A number of items that no
    published version has is said to be unknown. Raises DataError for a broken file.
    """
    described = {}
    for field, sets in _counted(config).items():
        path = getattr(config, field)
        digest = path_sha256(data_path(field, path))[:12]
        found = "; ".join(_describe(name, count) for name, count in sorted(sets.items()))
        described[field] = f"{found} (sha256 {digest})"
    return described


def unknown_versions(config: EvaluateConfig) -> list[str]:
    """A sentence for each published set whose number of items no published version has."""
    return [
        f"evaluate.{field}: {_describe(name, count)}; known are "
        f"{', '.join(f'{n} items ({version})' for n, version in _KNOWN[name].items())}"
        for field, sets in _counted(config).items()
        for name, count in sorted(sets.items())
        if name in _KNOWN and count not in _KNOWN[name]
    ]


def _counted(config: EvaluateConfig) -> dict[str, Counter[str]]:
    """Items by field and set."""
    counted = {}
    if config.heldout is not None:
        own = "selfalign's default set" if is_default("heldout", config.heldout) else "own items"
        items = load_heldout(config.heldout)
        counted["heldout"] = Counter(_SETS.get(item.kind, own) for item in items)
    for name, suite in SUITES.items():
        if (path := getattr(config, name)) is not None:
            counted[name] = Counter({_TITLES[name]: len(suite.load(path))})
    return counted


def _describe(name: str, count: int) -> str:
    known = _KNOWN.get(name)
    version = "" if known is None else f" {known.get(count, 'of an unknown version')}"
    return f"{name}{version}, {count} items"
