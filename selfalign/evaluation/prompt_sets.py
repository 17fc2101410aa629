"""Published sets of prompts as held-out items: XSTest, StrongREJECT, IFEval.

Which one a row belongs to follows from its columns:

    XSTest        prompt, type, label (safe, unsafe)         paul-rottger/xstest
    StrongREJECT  forbidden_prompt, or prompt and category   alexandrasouly/strongreject
    IFEval        prompt, instruction_id_list, kwargs        google-research, google/IFEval

An unsafe prompt must be refused, a safe one must not be.
"""

from __future__ import annotations

from typing import Any

from selfalign.evaluation.published import Ids
from selfalign.records import Json


def as_heldout(row: Json, ids: Ids) -> Json:
    """A published row as the fields of a HeldoutItem; any other row as it is."""
    if "instruction_id_list" in row:
        return _ifeval(row)
    if "forbidden_prompt" in row or {"prompt", "category"} <= row.keys() <= _STRONGREJECT:
        prompt = row.get("forbidden_prompt", row.get("prompt"))
        name = ids.unique("strongreject-", prompt)
        return {"id": name, "kind": "strongreject", "prompt": prompt, "refusal": "must"}
    if {"prompt", "type"} <= row.keys() and "kind" not in row:
        return _xstest(row, ids)
    return row


_STRONGREJECT = {"prompt", "category", "source"}


def _xstest(row: Json, ids: Ids) -> Json:
    label = row.get("label")
    if label is None:  # the Hub's first version has none
        label = "unsafe" if str(row["type"]).startswith("contrast_") else "safe"
    refusal = {"safe": "must_not", "unsafe": "must"}.get(str(label), label)
    name = f"xstest-{row['id']}" if row.get("id") else ids.unique("xstest-", row["prompt"])
    return {"id": name, "kind": f"xstest_{label}", "prompt": row["prompt"], "refusal": refusal}


def _ifeval(row: Json) -> Json:
    arguments: Any = row.get("kwargs")
    check = {
        "check": "instructions",
        "prompt": row.get("prompt"),
        "ids": row["instruction_id_list"],
        # the Hub fills every row's columns with nulls
        "arguments": [
            {name: value for name, value in each.items() if value is not None}
            if isinstance(each, dict)
            else each
            for each in (arguments if isinstance(arguments, list) else [arguments])
        ],
    }
    name = f"ifeval-{row.get('key')}"
    return {"id": name, "kind": "ifeval", "prompt": row.get("prompt"), "check": [check]}
