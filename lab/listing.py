"""The studies in their folder, and what each says of itself; read without importing it, which would load torch."""

import ast
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

STUDIES = Path(__file__).parent / "studies"


@dataclass(frozen=True)
class About:
    """question: the first paragraph of the file. hours: all of it on 2 cores, from an empty store. result: its file."""

    question: str
    hours: float
    result: str


def studies() -> dict[str, About]:
    """By the command's name, the studies: every file of the folder is one."""
    files = sorted(path for path in STUDIES.glob("*.py") if path.stem != "__init__")
    return {path.stem.replace("_", "-"): _about(path) for path in files}


def study_module(name: str) -> Any:
    """The file of a study, imported: it has STUDY, a `lab.study.Study`, and TABLES."""
    return import_module(f"lab.studies.{name.replace('-', '_')}")


def _about(path: Path) -> About:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants: dict[str, Any] = {
        target.id: statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    question = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    return About(question, constants["HOURS"], constants["RESULT"])
