"""requirements/dev.txt has a version of every package that pyproject.toml asks for, and the torch of the Makefile."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "dev.txt"
LOCKED = [Requirement(line) for line in LOCK.read_text().splitlines() if not line.startswith("#")]


def locked(python: str) -> dict[str, str]:
    """name -> version of the packages for a version of Python, on Linux."""
    environment = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    chosen = [line for line in LOCKED if line.marker is None or line.marker.evaluate(environment)]
    assert len({line.name for line in chosen}) == len(chosen), "a package has two versions"
    return {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in chosen}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is newer")
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_has_a_version_that_fits(python: str) -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = declared["project"]["optional-dependencies"]
    texts = [
        *declared["build-system"]["requires"],
        *declared["project"]["dependencies"],
        *(each for extra in extras.values() for each in extra),
    ]
    texts += declared["tool"]["uv"]["constraint-dependencies"]
    versions = locked(python)
    for requirement in map(Requirement, texts):
        if (name := canonicalize_name(requirement.name)) != "electra-fast":
            assert name in versions, f"{name} is not locked; run: make lock"
            assert requirement.specifier.contains(versions[name]), f"{name} {versions[name]}; run: make lock"


def test_torch_is_that_of_the_makefile_and_of_the_workflows() -> None:
    (version,) = re.findall(r"^TORCH \?= torch==(.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert locked("3.12")["torch"] == version
    for path in (".github/actions/setup/action.yml", ".github/workflows/tests.yml"):
        assert f"torch=={version}" in (ROOT / path).read_text()


def test_it_names_no_index_and_no_path() -> None:
    assert not re.search(r"https?:|--|file:| @ ", LOCK.read_text())
