"""Install into an image what the project and its extras need: python3 install.py EXTRA...

Reads pyproject.toml, constraints.txt, constraints-images.txt and hashes.txt beside itself. A
package that the base image has keeps its version where pyproject.toml allows it (a vLLM image is a
set of packages that were tested together); everything else is pinned by the constraints. pip first
resolves and installs nothing; then it installs exactly that, and refuses each file whose SHA-256 is
not in hashes.txt. CHECK_HASHES=0 installs without that list. Needs nothing but pip, for it runs
before anything is installed.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
from pip._vendor.packaging.version import Version

HERE = Path(__file__).parent
_PIP = [sys.executable, "-m", "pip"]


def requirements(extras: list[str]) -> list[Requirement]:
    """The project's dependencies, the extras', and what it takes to install the project itself."""
    content = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))
    optional = content["project"]["optional-dependencies"]
    wanted = [*content["build-system"]["requires"], *content["project"]["dependencies"]]
    for extra in extras:
        wanted += optional[extra]
    return [Requirement(line) for line in wanted]


def pins(wanted: list[Requirement]) -> dict[str, str]:
    """Package -> version: as installed, else of the constraints, else that which has hashes."""
    found = dict(hashes().keys())
    for name in ("constraints.txt", "constraints-images.txt"):
        for line in (HERE / name).read_text("utf-8").splitlines():
            package, separator, version = line.partition("#")[0].strip().partition("==")
            if separator:
                found[canonicalize_name(package)] = version
    asked = {canonicalize_name(requirement.name): requirement.specifier for requirement in wanted}
    for distribution in distributions():
        package = canonicalize_name(distribution.name)
        if package not in asked or asked[package].contains(distribution.version, prereleases=True):
            found[package] = distribution.version
    return found


def hashes() -> dict[tuple[str, str], list[str]]:
    """Package and version -> pip's options with the SHA-256 of each file of that release.

    A version's builds (2.13.0+cpu) stand beside it: one index or another has them.
    """
    found: dict[tuple[str, str], list[str]] = {}
    text = (HERE / "hashes.txt").read_text("utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        pinned, *options = line.partition("#")[0].split() or [""]
        name, separator, version = pinned.partition("==")
        if separator:
            found.setdefault((canonicalize_name(name), Version(version).public), []).extend(options)
    return found


def locked(report: dict[str, list[dict[str, dict[str, str]]]]) -> list[str]:
    """A line with hashes for each package of a pip installation report.

    Raises:
        SystemExit: a package has none.
    """
    known, lines, unknown = hashes(), [], []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        options = known.get((canonicalize_name(name), Version(version).public))
        if options:
            lines.append(" ".join([f"{name}=={version}", *options]))
        else:
            unknown.append(f"{name}=={version}")
    if unknown:
        sys.exit(
            f"error: images/hashes.txt has no hashes of {', '.join(sorted(unknown))}\n"
            "  remedy: `make hashes` after a change of the constraints; CHECK_HASHES=0 installs "
            "without hashes"
        )
    return lines


def main() -> None:
    wanted = requirements(sys.argv[1:])
    with tempfile.TemporaryDirectory() as temporary:
        asked, pinned, report, lock = (
            Path(temporary, name) for name in ("asked.txt", "pins.txt", "report.json", "lock.txt")
        )
        asked.write_text("".join(f"{r}\n" for r in wanted), "utf-8")
        pinned.write_text("".join(f"{n}=={v}\n" for n, v in pins(wanted).items()), "utf-8")
        # Nothing is downloaded twice, and the image keeps no cache.
        install = [*_PIP, "install", "--cache-dir", str(Path(temporary, "cache"))]
        resolve = [*install, "-r", str(asked), "-c", str(pinned)]
        if os.environ.get("CHECK_HASHES") in ("0", "false", "no"):
            sys.exit(subprocess.run(resolve, check=False).returncode)
        resolve += ["--dry-run", "--quiet", "--report", str(report)]
        if code := subprocess.run(resolve, check=False).returncode:
            sys.exit(code)
        lines = locked(json.loads(report.read_text("utf-8")))
        if not lines:
            return  # the base image has it all
        lock.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        checked = [*install, "--no-deps", "--require-hashes", "-r", str(lock)]
        sys.exit(subprocess.run(checked, check=False).returncode)


if __name__ == "__main__":
    main()
