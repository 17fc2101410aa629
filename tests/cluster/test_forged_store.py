"""Forged objects in the bucket against stage pods on a real node: no code of theirs runs.

Each forgery gets a copy of a finished run's store. A pod of the stage that reads the object, the
controller's own pod without the key that it expects, works on that copy.
"""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from selfalign.errors import EXIT_CODES
from selfalign.pipeline import BY_NAME, STAGES
from selfalign.run.executors.kubernetes.cluster import Resource
from selfalign.store.files import file_sha256
from selfalign.store.local import LocalStore
from tests.forging import DEEP, ESC, FORGERIES, HUGE, Change, forge, part, put, sealed

from .site import BUCKET, Site, kubectl, until

pytestmark = pytest.mark.cluster
PODS_AT_ONCE = 4
OWNED = "code of the bucket ran"
READER = {name: stage.name for stage in STAGES for name in stage.reads}


@dataclass(frozen=True)
class Forgery:
    """What is done to one object of a store, and the stage whose pod reads it."""

    stage: str
    object: str = "nothing"
    change: Change | bytes | Callable[[LocalStore], None] = lambda store: None
    keep_own: bool = False  # the object belongs to the artifact that the stage writes

    @property
    def genuine(self) -> bool:
        return self.object == "nothing"


class Owned:
    """Unpickled, it says so."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, (OWNED,)


CODE = f"print({OWNED!r})\n".encode()
PICKLE = pickle.dumps({"weight": Owned()})
TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
    "{{ cycler.__init__.__globals__.os.popen('echo " + OWNED + "').read() }}",
)


def model(**files: bytes | None) -> Callable[[LocalStore], None]:
    """Replace, add or (None) take away files of the engraved model, and vouch for them."""

    def change(store: LocalStore) -> None:
        root = Path(store.url)
        manifest = next(root.glob("artifacts/engraved_model/*/manifest.json"))
        value = json.loads(manifest.read_bytes())
        for written, data in files.items():
            name = f"files/merged/{written.replace('__', '.')}"
            rest = [entry for entry in value["files"] if entry["name"] != name]
            value["files"] = rest
            if data is None:
                continue
            path = manifest.parent / f"{name}-forged"
            path.write_bytes(data)
            entry = {"name": name, "key": f"{name}-forged", "sha256": file_sha256(path)}
            rest.append({**entry, "bytes": len(data)})
        manifest.write_bytes(sealed(value))

    return change


def remote_code(file: str) -> Callable[[LocalStore], None]:
    """A configuration that names a module beside it."""
    classes = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", None]}
    auto = {"auto_map": {**classes, "AutoModelForCausalLM": "evil.M"}, "model_type": "evil"}
    return model(**{file: json.dumps(auto).encode(), "evil__py": CODE, "__init____py": CODE})


def base_model(name: str, data: bytes) -> Callable[[LocalStore], None]:
    """Replace a file of the pushed base model, and vouch for it in its manifest."""

    def change(store: LocalStore) -> None:
        manifest = next(Path(store.url).glob("inputs/base_model/*/manifest.json"))
        path = manifest.parent / "files" / name
        path.write_bytes(data)
        value = json.loads(manifest.read_bytes())
        for entry in value["files"]:
            if entry["name"] == name:
                entry.update(sha256=file_sha256(path), bytes=len(data))
        manifest.write_bytes(sealed(value))

    return change


def forgeries() -> Iterator[Forgery]:
    """Those of nothing first: what is not forged ends well, in the same kind of pod."""
    yield from map(Forgery, BY_NAME)
    for pattern, change in FORGERIES:
        artifact = pattern.split("/")[1] if pattern.startswith("artifacts/") else ""
        if pattern == "current.json":
            yield Forgery("promote", pattern, change)
        elif pattern == "gc.json":
            yield Forgery("curate", pattern, change)
        elif artifact in READER:
            yield Forgery(READER[artifact], pattern, change)
    for name in ("candidates", "prompts", "verbose_responses", "final_model", "evaluation"):
        manifest = f"artifacts/{name}/*/manifest.json"
        yield Forgery(READER[name], manifest, DEEP)
        yield Forgery(READER[name], manifest, put(parents=[ESC]))
    for change in (DEEP, HUGE, b"\xff", b"null"):
        yield Forgery("align", "artifacts/aligned_responses/*/shards/*.json", change, keep_own=True)
    yield Forgery("align", "artifacts/aligned_responses/*/claim.json", DEEP, keep_own=True)
    own = "artifacts/aligned_responses/*/parts/*/prompts-00000.json"
    yield Forgery("align", own, put(name="../../../../x"), keep_own=True)
    yield Forgery("align", own, b"[]", keep_own=True)
    yield Forgery("instruct", "artifacts/candidates/*/topics/round-00.json", DEEP, keep_own=True)
    yield Forgery("curate", "artifacts/candidates/*/manifest.json", part(name="/etc/passwd"))
    for file in ("config__json", "tokenizer_config__json"):
        yield Forgery("elaborate", "engraved_model", remote_code(file))
    yield Forgery("elaborate", "engraved_model", model(model__safetensors=PICKLE))
    only_pickle = model(model__safetensors=None, pytorch_model__bin=PICKLE)
    yield Forgery("elaborate", "engraved_model", only_pickle)
    for template in TEMPLATES:
        file = model(chat_template__jinja=template.encode())
        yield Forgery("evaluate", "engraved_model", file)
    yield Forgery("elaborate", "engraved_model", model(generation_config__json=DEEP))
    yield Forgery("elaborate", "engraved_model", model(tokenizer__json=b'{"model": 7}'))
    yield Forgery("align", "inputs/base_model", base_model("config.json", CODE))
    yield Forgery("engrave", "inputs/base_model", base_model("model.safetensors", PICKLE))


def test_forged_objects_are_named_by_stage_pods_and_no_code_runs(
    site: Site, tmp_path: Path
) -> None:
    site.create_run("honest")
    assert site.ended("honest")["verdict"] == "Promoted"
    genuine = tmp_path / "genuine"
    _download(site, genuine)
    templates = {stage: _pod_of(site, stage) for stage in BY_NAME}
    planned = list(forgeries())
    assert len(planned) >= 40 + len(BY_NAME)
    waiting: list[tuple[int, Forgery]] = []
    refused = 0
    for number, forgery in [*enumerate(planned), (-1, None)]:
        if forgery is not None:
            place = f"{site.namespace}-{number}"
            _upload(site, _forged(genuine, tmp_path / "forged", forgery), place)
            _start(site, templates[forgery.stage], f"forged-{number}", place)
            waiting.append((number, forgery))
        while waiting and (forgery is None or len(waiting) >= PODS_AT_ONCE):
            refused += _check(site, *waiting.pop(0)) != 0
    forged = len(planned) - len(BY_NAME)
    print(f"{refused} of {forged} forgeries were refused, the others had no effect")
    assert refused > forged / 2


def _check(site: Site, number: int, forgery: Forgery) -> int:
    name = f"forged-{number}"
    told = (forgery.stage, forgery.object, number)

    def end() -> Resource | None:
        pod = site.cluster.get("pods", name)
        return pod if pod["status"]["phase"] in ("Succeeded", "Failed") else None

    pod = until(end, f"{told} to end", 180)
    code: int = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
    log = kubectl("-n", site.namespace, "logs", name, "--tail=-1")
    assert code == 0 or code in EXIT_CODES, (told, code, log[-3000:])
    assert code != 1, (told, log[-3000:])
    assert code == 0 or not forgery.genuine, (told, log[-3000:])
    for never in ("Traceback", OWNED, "\x1b]0;", "root:x:0"):
        assert never not in log, (told, log[-3000:])
    said = [line for line in log.splitlines() if "error" in line][-1:]
    print(f"{name} {forgery.stage}, {forgery.object}: exit {code} {said}"[:500])
    kubectl("-n", site.namespace, "delete", "pod", name, "--wait=false")
    return code


def _pod_of(site: Site, stage: str) -> Resource:
    """A pod as the controller makes it for a stage, without an expected key."""
    selector = f"selfalign.io/run=honest,selfalign.io/stage={stage}"
    job = site.cluster.list("jobs", selector)[0]
    template: Resource = copy.deepcopy(job["spec"]["template"])
    annotations = template["metadata"]["annotations"]  # its configuration is one
    arguments = template["spec"]["containers"][0]["args"]
    at = arguments.index("--expect-key")
    del arguments[at : at + 2]
    spec = {**template["spec"], "restartPolicy": "Never"}
    return {"metadata": {"annotations": annotations}, "spec": spec}


def _start(site: Site, pod: Resource, name: str, place: str) -> None:
    body: Resource = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(pod)}
    body["metadata"]["name"] = name
    body["spec"]["containers"][0]["args"] += ["--set", f"store=s3://{BUCKET}/{place}"]
    kubectl("-n", site.namespace, "create", "-f", "-", stdin=body)


def _forged(genuine: Path, directory: Path, forgery: Forgery) -> Path:
    """A copy of the store in which the object is forged and the stage has its work to do."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(genuine, directory)
    own = directory / "artifacts" / BY_NAME[forgery.stage].writes
    if forgery.keep_own:
        for path in [*own.glob("*/manifest.json"), *own.glob("*/shards/*.json")]:
            if "shards" not in forgery.object or "shards" not in str(path):
                path.unlink()
    else:
        shutil.rmtree(own)
    store = LocalStore(directory)
    if callable(forgery.change) and "." not in forgery.object:
        forgery.change(store)  # one of this file's own
    else:
        forge(store, forgery.object, forgery.change)
    return directory


def _download(site: Site, directory: Path) -> None:
    client = site.s3.client()
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, Prefix=f"{site.namespace}/"
    )
    for key in [entry["Key"] for page in pages for entry in page.get("Contents", [])]:
        path = directory / key.partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())


def _upload(site: Site, directory: Path, place: str) -> None:
    client = site.s3.client()
    for path in directory.rglob("*"):
        if path.is_file():
            key = f"{place}/{path.relative_to(directory).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
