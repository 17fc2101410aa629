"""Model card and bill of materials: every source by digest, the scores, valid CycloneDX."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfalign.serving.bom import bill_of_materials
from selfalign.serving.card import Score, Scores, model_card
from selfalign.serving.origin import Ancestor, Base, Origin, origin, stated_license
from selfalign.store.artifact import ArtifactWriter
from selfalign.store.local import LocalStore
from selfalign.store.manifest import Counts, FileEntry, Manifest, Parent
from tests.artifacts import publish

SHA = "a" * 64
ORIGIN = Origin(
    artifact="final_model",
    key="k1",
    code_version="0.5.0",
    method="lora",
    base=Base(name="org/base-7b", version="c0ffee", license="apache-2.0"),
    seeds={"principles.txt": SHA},
    ancestors=[Ancestor("verbose_responses", "k0", "b" * 64, 12)],
)


def _score(model: str, metric: str, n: int, mean: float | None, *interval: float | None) -> Score:
    low, high = interval
    return Score(model=model, metric=metric, kind=None, n=n, mean=mean, low=low, high=high)


SCORES = Scores(
    "e1",
    0.95,
    [
        _score("base", "heldout.aligned", 20, 0.25, 0.1, 0.4),
        _score("final", "heldout.aligned", 20, 0.875, 0.7, 0.95),
        _score("final", "mc1", 0, None, None, None),
    ],
)


@pytest.mark.parametrize("scores", [None, SCORES])
@pytest.mark.parametrize("base", [ORIGIN.base, Base(name=None, version="sha256:1", license=None)])
def test_the_bill_of_materials_is_valid_cyclonedx(scores: Scores | None, base: Base) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    found = Origin(**{**{f: getattr(ORIGIN, f) for f in ORIGIN.__slots__}, "base": base})
    files = [FileEntry(name="model.safetensors", sha256=SHA, bytes=1)]
    document = bill_of_materials(found, scores, files=files, packages={"torch": "2.13.0"})
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.decode()) is None
    value = json.loads(document)
    hashes = {p["name"]: p["hashes"][0]["content"] for p in value["components"] if "hashes" in p}
    assert hashes == {"principles.txt": SHA, "verbose_responses": "b" * 64}
    assert document == bill_of_materials(found, scores, files=files, packages={"torch": "2.13.0"})


def test_the_card_tells_sources_scores_with_intervals_and_limits() -> None:
    card = model_card(ORIGIN, SCORES).decode()
    for line in (
        'license: "apache-2.0"',
        'base_model: "org/base-7b"',
        "| base model | org/base-7b, c0ffee |",
        f"| seeds: principles.txt | {SHA} |",
        f"| verbose_responses k0 | {'b' * 64}, 12 records |",
        "| heldout.aligned | final | 20 | 0.875 | 0.700 to 0.950 |",
        "| mc1 | final | 0 |  |  |",
        "## Limits",
    ):
        assert line in card.splitlines()
    assert "Not evaluated yet" in model_card(ORIGIN, None).decode()


def test_the_origin_follows_parents_to_the_principles_and_bears_a_lost_one(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)

    def made(artifact: str, seeds: dict[str, str], *parents: Manifest) -> Manifest:
        identity, counts = {"seeds": seeds}, Counts(kept=7)
        return publish(store, artifact, identity=identity, parents=parents, counts=counts)

    lost = made("prompts", {})
    engraved = made("engraved_model", {}, made("aligned_responses", {"principles.txt": SHA}, lost))
    store.delete("artifacts/prompts/k/manifest.json")  # it expired since
    model = ArtifactWriter(
        store,
        artifact="final_model",
        stage="clone",
        key="k",
        identity={"code_version": "1", "config": {"method": "full"}, "seeds": {"l.yaml": SHA}},
        parents={
            "engraved_model": Parent(key="k", digest=engraved.digest),
            "../../etc": Parent(key="k", digest=lost.digest),
        },
    )
    found = origin(store, model, ORIGIN.base)
    assert found.seeds == {"l.yaml": SHA, "principles.txt": SHA}
    assert [(a.artifact, a.records) for a in found.ancestors] == [
        ("engraved_model", 7),
        ("aligned_responses", 7),
        ("prompts", None),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("# no front matter\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit", None),
        (None, None),
    ],
)
def test_a_license_is_told_only_where_the_card_states_one(
    tmp_path: Path, text: str | None, expected: str | None
) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert stated_license(tmp_path) == expected
