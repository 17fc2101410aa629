"""A person decides whether a model that passed the gate is promoted (`promote.approval: manual`).

    artifacts/promotion/<key>/request.json   by `promote`: the gate passed, against which model
    approvals/<key>.json                     by `selfalign approve` or `reject`, once, if absent

`promote` is started again when the second is there, and carries it out. Who may write below
`approvals/` may decide; who may create runs may not. A decision names the request by its digest, so
none can be made before the gate has judged, and none fits another verdict.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from selfalign.errors import ConfigurationError, DataError
from selfalign.records import digest, now
from selfalign.stages.notice import VerdictNotice
from selfalign.store.artifact import artifact_prefix, read_manifest
from selfalign.store.base import PreconditionFailed, Store
from selfalign.store.documents import StoredModel, StoredName, read_document, write_once
from selfalign.store.pointer import read_pointer, standing

ApprovalState = Literal["awaited", "given"]
_LONGEST_NAME, _LONGEST_REASON = 500, 2000  # characters


class ApprovalRequest(StoredModel):
    """A model passed the gate and waits.

    Attributes:
        promotion: key of the promotion that is to be published.
        run: for which run it was judged.
        model: content digest of the final model.
        against: content digest of the promoted model it was judged against; None: nothing was.
        verdict: the gate's, as `verdict.json` will hold it.
    """

    signed = True

    promotion: StoredName
    run: str | None
    model: str
    against: str | None
    asked_at: str
    verdict: dict[str, Any]
    notice: VerdictNotice

    @property
    def digest(self) -> str:
        """What a decision names it by."""
        return digest(self.model_dump(mode="json"))


class Approval(StoredModel):
    """What a person decided.

    Attributes:
        request: digest of the request that it answers.
        by: who, as they say; the store does not prove it.
        at: ISO 8601, UTC.
    """

    signed = True

    request: str
    approved: bool
    by: str = Field(min_length=1, max_length=_LONGEST_NAME)
    at: str
    reason: str = Field("", max_length=_LONGEST_REASON)

    def __str__(self) -> str:
        what = "Approved" if self.approved else "Rejected"
        return f"{what} by {self.by} at {self.at}" + (f": {self.reason}" if self.reason else "")


def approval_state(store: Store, promotion: str) -> ApprovalState | None:
    """Whether a promotion that is not published waits for a person, or a person has decided."""
    if store.exists(_place(promotion)):
        return "given"
    return "awaited" if store.exists(_request_place(promotion)) else None


def read_request(store: Store, promotion: str) -> ApprovalRequest | None:
    """The request, or None where none was made. Raises DataError."""
    return read_document(store, _request_place(promotion), ApprovalRequest)


def read_decision(store: Store, promotion: str) -> Approval | None:
    """What a person decided, or None. Raises DataError."""
    return read_document(store, _place(promotion), Approval)


def ask(store: Store, request: ApprovalRequest) -> Approval | None:
    """Put up a request, unless an earlier attempt has; what is `decided` on the one that stands."""
    return _decision_on(store, write_once(store, _request_place(request.promotion), request))


def decided(store: Store, promotion: str) -> Approval | None:
    """What a person decided on the request that stands, or None.

    Raises DataError for a decision on another request.
    """
    request = read_request(store, promotion)
    return None if request is None else _decision_on(store, request)


def _decision_on(store: Store, request: ApprovalRequest) -> Approval | None:
    found = read_decision(store, request.promotion)
    if found is not None and found.request != request.digest:
        raise DataError(
            f"{store.url}/{_place(request.promotion)}: answers another request than "
            f"{request.digest[:12]}",
            remedy="it was copied, or made for one that gc has deleted: delete it and decide again",
        )
    return found


def decide_on(
    store: Store, run: str, promotion: str | None, *, approved: bool, by: str, reason: str
) -> Approval:
    """Write down a person's decision.

    Raises:
        ConfigurationError: a text is too long, the run does not wait for a decision, somebody has
            decided, or another model was promoted since the gate judged.
    """
    for what, text, limit in (("name", by, _LONGEST_NAME), ("reason", reason, _LONGEST_REASON)):
        if len(text) > limit:
            raise ConfigurationError(
                f"the {what} has {len(text)} characters, expected at most {limit}",
                remedy="shorten it",
            )
    request = None if promotion is None else read_request(store, promotion)
    if promotion is None or request is None:
        raise ConfigurationError(
            f"run {run!r} does not wait for approval",
            remedy=f"see how it stands: selfalign status {run}",
        )
    place = _place(promotion)
    if read_manifest(store, "promotion", promotion) is not None:
        raise _decided(store, run, read_decision(store, promotion))
    current = read_pointer(store)
    found = None if current is None else current.pointer.model.digest
    if approved and found != request.against:
        raise ConfigurationError(
            f"run {run!r} was judged against {(request.against or 'nothing')[:12]}; it "
            f"{standing(request.model, current)}",
            remedy="another model was promoted, or rolled back, meanwhile: run again, which judges "
            "this model against it and reuses the rest",
        )
    decision = Approval(
        request=request.digest, approved=approved, by=by, at=now(), reason=reason.strip()
    )
    try:
        store.write(place, decision.to_bytes(place), if_absent=True)
    except PreconditionFailed:
        raise _decided(store, run, read_decision(store, promotion)) from None
    return decision


def _decided(store: Store, run: str, decision: Approval | None) -> ConfigurationError:
    told = "it is published" if decision is None else f"{decision}"
    return ConfigurationError(
        f"{store.url}: run {run!r} is decided already: {told}",
        remedy="a decision is final; `selfalign rollback` undoes a promotion, a run with another "
        "seed makes another model",
    )


def _place(promotion: str) -> str:
    return f"approvals/{promotion}.json"


def _request_place(promotion: str) -> str:
    return artifact_prefix("promotion", promotion) + "request.json"
