"""Stage `promote`: the gate, and the pointer.

Reads evaluation and final_model. When the gate says so, completes `models/<digest>/`, moves
`current` to it by compare-and-swap, and then publishes the promotion record. A worker killed
between these continues the directory, or finds the pointer already on its own promotion and only
publishes. With `promote.approval: manual` the gate's yes is put up as a request and nothing else
happens, until a person has decided (`approval.py`).
"""

from __future__ import annotations

from selfalign.errors import TemporaryError
from selfalign.evaluation.anchor import surpasses_anchor
from selfalign.evaluation.gate import Verdict, judge
from selfalign.evaluation.summary import EvaluationSummary
from selfalign.records import now
from selfalign.stages.approval import Approval, ApprovalRequest, ask, decided
from selfalign.stages.contract import StageContext, provenance
from selfalign.stages.notice import NOTICE_NAME, VerdictNotice, verdict_notice
from selfalign.stages.served import serve
from selfalign.store.artifact import read_file_as
from selfalign.store.base import PreconditionFailed
from selfalign.store.manifest import Counts, Manifest
from selfalign.store.pointer import Anchor, Pointer, PromotedModel, move_pointer, read_pointer
from selfalign.telemetry import log

HISTORY_LENGTH = 30  # promoted models a rollback can reach


def promote(context: StageContext) -> Manifest | None:
    """Judge, move the pointer if the gate passes, publish the promotion record; None while a
    person is to decide."""
    started = now()
    evaluation = context.parent("evaluation")
    final = context.parent("final_model")
    summary = read_file_as(context.store, evaluation, "summary.json", EvaluationSummary)
    verdict = judge(summary, context.config.promote)
    found = verdict_notice(context.store, evaluation, verdict)
    approval = None
    if verdict.promote and context.config.promote.approval == "manual":
        current = _is_current(context, final)
        if current:  # maybe by an earlier attempt of this very promotion, which a person approved
            approval = decided(context.store, context.key)
        else:
            approval = ask(context.store, _request(context, evaluation, final, verdict, found))
        if approval is not None:
            verdict = _as_decided(verdict, approval)
        elif not current:
            log.info("approval.awaited", promotion=context.key, model=final.digest)
            return None
    if verdict.promote:
        _move(context, evaluation, final, summary)
    log.info("gate.judged", decision=verdict.decision, reasons=verdict.told())
    writer = context.writer()
    record = verdict.model_dump_json(indent=2).encode() + b"\n"
    return writer.publish(
        shards=[],
        files=[
            writer.add_bytes(record, "verdict.json"),
            writer.add_bytes(found.to_bytes(), NOTICE_NAME),
        ],
        counts=Counts(),
        details={
            "promoted": verdict.promote,
            "decision": verdict.decision,
            "reasons": verdict.told(),
            **({} if approval is None else {"approval": approval.model_dump(mode="json")}),
        },
        provenance=provenance(started),
    )


def _is_current(context: StageContext, final: Manifest) -> bool:
    """Whether the final model was promoted before: nobody is asked about it again."""
    current = read_pointer(context.store)
    return current is not None and current.pointer.model.digest == final.digest


def _request(
    context: StageContext,
    evaluation: Manifest,
    final: Manifest,
    verdict: Verdict,
    notice: VerdictNotice,
) -> ApprovalRequest:
    return ApprovalRequest(
        promotion=context.key,
        run=context.run,
        model=final.digest,
        against=evaluation.identity.get("promoted"),
        asked_at=now(),
        verdict=verdict.model_dump(mode="json"),
        notice=notice,
    )


def _as_decided(verdict: Verdict, approval: Approval) -> Verdict:
    """The verdict with what a person decided on it."""
    if approval.approved:
        return verdict.model_copy(update={"explanation": f"{verdict.explanation} {approval}."})
    told = f"{approval}. The gate had passed it. {verdict.explanation}"
    return verdict.model_copy(
        update={"promote": False, "decision": "rejected", "explanation": told}
    )


def _move(
    context: StageContext, evaluation: Manifest, final: Manifest, summary: EvaluationSummary
) -> None:
    """Point `current` at the final model, if it still points where it was judged against."""
    judged_against = evaluation.identity.get("promoted")
    current = read_pointer(context.store)
    if current is not None and current.pointer.promotion == context.key:
        return  # an earlier attempt moved it and was killed before it could say so
    found = None if current is None else current.pointer.model.digest
    if found == final.digest:
        return  # this very model was promoted before under another evaluation
    if found != judged_against:
        raise _moved_meanwhile(context, judged_against, found)
    model = PromotedModel(
        artifact=final.artifact,
        key=final.key,
        digest=final.digest,
        directory=serve(context, final, evaluation, summary),
    )
    held_to = None if current is None else _anchor_of(context, current.pointer, evaluation)
    history = [] if current is None else [current.pointer.model, *current.pointer.history]
    rolled_back = [] if current is None else current.pointer.rolled_back
    pointer = Pointer(
        model=model,
        previous=None if current is None else current.pointer.model,
        promotion=context.key,
        run=context.run,
        moved_at=now(),
        history=history[:HISTORY_LENGTH],
        rolled_back=[m for m in rolled_back if m.digest != model.digest][:HISTORY_LENGTH],
        anchor=_next_anchor(context, held_to, model, summary),
        previous_anchor=held_to.model if held_to else None,
    )
    try:
        move_pointer(context.store, pointer, current)
    except PreconditionFailed as error:
        raise _moved_meanwhile(context, judged_against, "another model") from error
    log.info("pointer.moved", model=model.key, previous=found)


def _anchor_of(context: StageContext, pointer: Pointer, evaluation: Manifest) -> Anchor:
    """What the final model was held to: the pointer's anchor, or the one that a person pinned."""
    held_to = pointer.anchor or Anchor(model=pointer.model, promotions=0)
    if context.config.promote.anchor is None:
        return held_to
    digest = evaluation.identity.get("anchor")  # None: the pinned model is the promoted one
    known = (model for model in pointer.kept_models() if model.digest == digest)
    pinned = next(known, pointer.model)
    return held_to if pinned.digest == held_to.model.digest else Anchor(model=pinned, promotions=0)


def _next_anchor(
    context: StageContext, before: Anchor | None, model: PromotedModel, summary: EvaluationSummary
) -> Anchor:
    """The anchor once `model` is promoted: the first model is one, then see `anchor.py`.

    A pinned one enters the pointer and stays there: what no pointer names is forgotten and deleted.
    """
    if before is None:
        return Anchor(model=model, promotions=0)
    promotions = before.promotions + 1
    if context.config.promote.anchor is None and surpasses_anchor(summary, promotions):
        return Anchor(model=model, promotions=0)
    return Anchor(model=before.model, promotions=promotions)


def _moved_meanwhile(
    context: StageContext, expected: str | None, found: str | None
) -> TemporaryError:
    return TemporaryError(
        f"{context.store.url}/current.json points at {found or 'nothing'}, but the final model "
        f"was judged against {expected or 'nothing'}",
        remedy="another run promoted meanwhile; the next attempt judges against its model",
    )
