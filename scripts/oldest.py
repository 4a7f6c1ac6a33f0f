"""Constraints that pin every direct dependency to the oldest version that pyproject.toml declares, on stdout."""

import re
import tomllib
from pathlib import Path


def oldest(requirement: str) -> str | None:
    """ "torch>=2.9" -> "torch==2.9"; None for one without a lower bound, such as one of our own extras."""
    match = re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)", requirement)
    return f"{match[1]}=={match[2]}" if match else None


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    print("\n".join(sorted({pin for pin in map(oldest, declared) if pin})))
