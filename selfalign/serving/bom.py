"""`bom.cdx.json` of a model: a CycloneDX 1.6 bill of materials (https://cyclonedx.org/docs/1.6).

Written here because the official library has no model cards; tests hold it against its schema.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from selfalign.serving.card import INTENDED, LIMITS, Scores
from selfalign.serving.origin import Base, Origin
from selfalign.store.manifest import FileEntry

BOM_NAME = "bom.cdx.json"
_NAMESPACE = uuid.UUID("6c0d0f4e-3b52-5f0e-9f86-0c1b7c1f5a10")  # of this project's serial numbers
_Json = dict[str, Any]


def bill_of_materials(
    origin: Origin,
    scores: Scores | None,
    *,
    files: Sequence[FileEntry] = (),
    packages: Mapping[str, str] | None = None,
) -> bytes:
    """The document; the same bytes for the same model.

    Args:
        files: the model's files, where their digests are known.
        packages: versions of the libraries that trained it, by name.
    """
    model = f"{origin.artifact}/{origin.key}"
    parts = [
        _base(origin.base),
        *(_seed(name, sha) for name, sha in origin.seeds.items()),
        *(
            _data(f"{each.artifact}/{each.key}", each.artifact, each.key, each.digest)
            for each in origin.ancestors
        ),
        *(_library(name, version) for name, version in sorted((packages or {}).items())),
    ]
    component: _Json = {
        "type": "machine-learning-model",
        "bom-ref": model,
        "name": origin.artifact,
        "version": origin.key,
        "pedigree": {"ancestors": [_base(origin.base, ref="pedigree")]},
        "modelCard": _model_card(origin, scores),
    }
    if files:
        component["components"] = [
            {"type": "file", "bom-ref": file.name, "name": file.name, "hashes": _sha(file.sha256)}
            for file in files
        ]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, model)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [_library("selfalign", origin.code_version, "application")]},
            "component": component,
        },
        "components": parts,
        "dependencies": [{"ref": model, "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _model_card(origin: Origin, scores: Scores | None) -> _Json:
    names = [f"{each.artifact}/{each.key}" for each in origin.ancestors]
    card: _Json = {
        "modelParameters": {
            "approach": {"type": "self-supervised"},
            "task": "text-generation",
            "datasets": [{"ref": name} for name in names if not name.startswith("engraved_model")],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "considerations": {"useCases": [INTENDED], "technicalLimitations": list(LIMITS)},
        "properties": [{"name": "selfalign:method", "value": origin.method}],
    }
    if scores is not None:
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                {
                    "type": row.metric,
                    "value": f"{row.mean:.6g}",
                    "slice": row.model,
                    **(
                        {}
                        if row.low is None or row.high is None
                        else {
                            "confidenceInterval": {
                                "lowerBound": f"{row.low:.6g}",
                                "upperBound": f"{row.high:.6g}",
                            }
                        }
                    ),
                }
                for row in scores.rows
                if row.mean is not None
            ]
        }
    return card


def _base(base: Base, ref: str | None = None) -> _Json:
    part: _Json = {
        "type": "machine-learning-model",
        "bom-ref": f"base_model{'' if ref is None else f'/{ref}'}",
        "name": base.name or "base_model",
        "version": base.version,
    }
    if base.license is not None:
        part["licenses"] = [{"license": {"name": base.license}}]
    return part


def _seed(name: str, sha256: str) -> _Json:
    return _data(f"seeds/{name}", name, sha256[:12], sha256)


def _data(ref: str, name: str, version: str, sha256: str) -> _Json:
    return {
        "type": "data",
        "bom-ref": ref,
        "name": name,
        "version": version,
        "hashes": _sha(sha256),
    }


def _library(name: str, version: str, kind: str = "library") -> _Json:
    return {"type": kind, "bom-ref": f"package/{name}", "name": name, "version": version}


def _sha(sha256: str) -> list[_Json]:
    return [{"alg": "SHA-256", "content": sha256}]
