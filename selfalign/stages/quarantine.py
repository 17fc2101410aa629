"""How many rows of a stage may be set aside before the stage fails, and what it then says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable

from selfalign.errors import DataError
from selfalign.store.manifest import Part, QuarantinedRow

NAMED_ROWS = 5  # in the message of a stage that fails

_REMEDIES = {
    "too_long": "raise engine.max_length if the model takes more, or shorten the rows, the "
    "principles or the exemplars",
    "never_ending": "look at what is slow in these rows",
    "aborted": "read the engine's own log for these rows",
}


class QuarantineLimit:
    """Counts the quarantined rows of parts as they are committed.

    Args:
        what: the stage, or the part of its work that the limit holds for.
        setting: the configuration's name of `share`.
        rows: of all shards together; may be set anew when more become known.
        share: of `rows` that may be quarantined. Above 0, one row always may.
        uncounted: reasons for which any number of rows may be.
    """

    def __init__(
        self, what: str, setting: str, rows: int, share: float, uncounted: Container[str] = ()
    ) -> None:
        self._what, self._setting, self.rows, self._share = what, setting, rows, share
        self._uncounted = uncounted
        self._first: list[QuarantinedRow] = []
        self._reasons: Counter[str] = Counter()

    def add(self, part: Part) -> None:
        """Count a part's rows. Raises DataError when there are more than may be."""
        counted = [row for row in part.quarantined if row.reason not in self._uncounted]
        self._first += counted[: NAMED_ROWS - len(self._first)]
        for reason, count in part.counts.quarantined.items():
            self._reasons[reason] += 0 if reason in self._uncounted else count
        allowed = max(1, int(self._share * self.rows)) if self._share else 0
        if self._reasons.total() <= allowed:
            return
        reasons = ", ".join(f"{name} {count}" for name, count in self._reasons.most_common())
        (worst, _), *_ = self._reasons.most_common(1)
        remedy = _REMEDIES.get(worst, "mend or remove these rows")
        raise DataError(
            f"{self._what}: {self._reasons.total()} of {self.rows} rows cannot be put to the "
            f"model, expected at most {allowed} ({self._setting}: {self._share:g}): "
            f"{reasons}; the first are {_named(self._first)}",
            remedy=f"{remedy}; or raise {self._setting}: what is done stays done",
        )

    def add_all(self, parts: Iterable[Part]) -> None:
        """Count the parts of all shards."""
        for part in parts:
            self.add(part)


def _named(rows: Iterable[QuarantinedRow]) -> str:
    return "; ".join(f"{row.id} ({row.reason}: {row.explanation})" for row in rows)
