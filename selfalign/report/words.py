"""A difference between two runs in sentences, most important first."""

from __future__ import annotations

from collections.abc import Iterator

from selfalign.evaluation.answers import Answers
from selfalign.evaluation.summary import Comparison
from selfalign.report.compare import RunDiff

LEVEL = 0.05  # chance that something is called sure where nothing differs
_NAMED = 4  # settings or kinds in one sentence
VERDICTS = {
    "Promoted": "promoted",
    "NotPromoted": "not promoted",
    "NoChange": "no change",
    "Rejected": "rejected",
}
_WAS = {"complies": "complied", "partly": "complied in part", "refuses": "refused"}
_NOW = {"complies": "comply", "partly": "comply in part", "refuses": "refuse"}


def signed(value: float, digits: int = 3) -> str:
    """With its sign; a true minus, and no sign before zero."""
    text = f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if not text.strip("+\N{MINUS SIGN}0.") else text


def sentences(diff: RunDiff) -> Iterator[str]:
    """What a person wants to know first about the second run, given the first."""
    before, after = (run.status.verdict for run in (diff.before, diff.after))
    if before is not None and after is not None:
        was = "as before" if before == after else f"and was “{VERDICTS[before]}”"
        yield f"The verdict is “{VERDICTS[after]}”, {was}."
    confidence = 0.0 if diff.after.summary is None else diff.after.summary.confidence
    for row in diff.scores:
        if row.kind is None:
            yield score(row, confidence)
    if diff.answers is not None:
        yield answers(diff.answers)
        yield from refusals(diff.answers)
    sure = sorted(filter(is_sure, diff.scores), key=lambda row: -abs(row.difference or 0))
    kinds = [f"{row.kind} {signed(row.difference or 0)}" for row in sure if row.kind]
    if kinds:
        yield f"Kinds that clearly changed: {_some(kinds)}."
    yield from _made(diff)
    names = [setting.name for setting in diff.settings]
    yield (
        f"Settings and inputs that differ: {_some(names)}."
        if names
        else ("Settings and inputs are the same.")
    )


def is_clear(row: Comparison) -> bool:
    """Whether an interval leaves no room for zero."""
    return row.low is not None and row.high is not None and (row.low > 0 or row.high < 0)


def is_sure(row: Comparison) -> bool:
    """Whether a difference stands among all that were compared with it (Holm).

    Of 17 kinds of two equal models, some interval leaves zero out in most nights.
    """
    return is_clear(row) and row.p_holm is not None and row.p_holm < LEVEL


def score(row: Comparison, confidence: float) -> str:
    """One paired difference of the final models."""
    assert row.subject_mean is not None
    assert row.against_mean is not None
    assert row.difference is not None
    told = f"{row.metric}: {row.subject_mean:.3f}, was {row.against_mean:.3f} on the same {row.n}"
    if row.low is None or row.high is None:
        return f"{told} items ({signed(row.difference)})."
    better = "better" if row.difference > 0 else "worse"
    clear = is_clear(row) and row.p_value is not None and row.p_value < LEVEL
    return (
        f"{told} items ({signed(row.difference)}, {100 * confidence:g}% interval "
        f"{signed(row.low)} to {signed(row.high)}): "
        f"{f'clearly {better}' if clear else 'may well be chance'}."
    )


def answers(found: Answers) -> str:
    """How many answers differ, and how many of these got better or worse."""
    return (
        f"{len(found.changed)} of {found.compared} answers differ: {len(found.better)} better, "
        f"{len(found.worse)} worse, {len(found.other)} neither."
    )


def refusals(found: Answers) -> Iterator[str]:
    """How many answers moved between complying and refusing, most first."""
    for (old, new), count in sorted(found.refusals().items(), key=lambda each: -each[1]):
        plural = count != 1
        verb = _NOW[new] if plural else _NOW[new].replace("comply", "complies")
        verb = verb if plural or new != "refuses" else "refuses"
        yield f"{count} answer{'s' if plural else ''} that {_WAS[old]} now {verb}."


def _made(diff: RunDiff) -> Iterator[str]:
    changed = [
        f"{row.stage} {row.after:,} (was {row.before:,})"
        for row in diff.kept
        if row.before is not None and row.after is not None and row.before != row.after
        and row.stage not in ("evaluate", "promote")
    ]  # fmt: skip
    if changed:
        yield f"Rows kept: {', '.join(changed)}."
    same = [row.stage for row in diff.kept if row.same]
    if same:
        yield f"The very same artifacts as before: {', '.join(same)}."


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
