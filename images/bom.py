"""What an image holds, as a CycloneDX 1.6 bill of materials on standard output.

    docker run --rm -i --entrypoint python3 IMAGE - IMAGE <images/bom.py >IMAGE.cdx.json

Runs inside the image, whatever it is built on: Python distributions as their own metadata names
them, Debian packages as dpkg does. Needs nothing but pip.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pip._vendor.packaging.utils import canonicalize_name

DPKG = Path("/var/lib/dpkg/status")


def _python(distribution: Distribution) -> dict[str, Any]:
    name = canonicalize_name(distribution.metadata["Name"])
    purl = f"pkg:pypi/{name}@{quote(distribution.version, safe='')}"
    expression = distribution.metadata.get("License-Expression")
    return _library(purl, name, distribution.version) | (
        {"licenses": [{"expression": expression}]} if expression else {}
    )


def _debian(text: str, system: str) -> list[dict[str, Any]]:
    found = []
    for paragraph in text.split("\n\n"):
        field = dict(re.findall(r"^(Package|Status|Version|Architecture): (.*)$", paragraph, re.M))
        if field.get("Status", "").endswith(" installed"):
            purl = f"pkg:deb/{system}/{field['Package']}@{quote(field['Version'], safe='')}"
            purl += f"?arch={field['Architecture']}"
            found.append(_library(purl, field["Package"], field["Version"]))
    return found


def _library(purl: str, name: str, version: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _main() -> None:
    image, _, tag = sys.argv[1].rpartition(":")
    components = [_python(distribution) for distribution in distributions()]
    if DPKG.is_file():
        system = platform.freedesktop_os_release()["ID"]
        components += _debian(DPKG.read_text("utf-8"), system)
    unique = {component["bom-ref"]: component for component in components}
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": image, "version": tag}},
        "components": [unique[ref] for ref in sorted(unique)],
    }
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    _main()
