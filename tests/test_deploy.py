"""deploy/: files that their programs can read, and commands that `cvq serve` takes."""

import json
import re
import shlex
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command

from channelvq.cli.serve import serve

FOLDER = Path(__file__).parents[1] / "deploy"
STOP_SECONDS = 120  # --timeout, in which what runs is finished


def parsed(words: list[str]) -> dict[str, Any]:
    """What `cvq serve` takes from the words after its name; click's error for one that it has not."""
    command = typer.Typer(add_completion=False)
    command.command()(serve)
    context = get_command(command).make_context("serve", list(words))
    return context.params


def dockerfile() -> dict[str, list[str]]:
    """Words of the last ENTRYPOINT and CMD."""
    text = (FOLDER / "Dockerfile").read_text()
    return {name: json.loads(words) for name, words in re.findall(r"^(ENTRYPOINT|CMD) (\[.*\])$", text, re.MULTILINE)}


def test_the_container_serves() -> None:
    words = dockerfile()
    assert words["ENTRYPOINT"][:2] == ["cvq", "serve"]
    taken = parsed(words["ENTRYPOINT"][2:] + words["CMD"])
    assert (taken["host"], taken["port"], taken["model"]) == ("0.0.0.0", 8000, "bundled")
    text = (FOLDER / "Dockerfile").read_text()
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)
    for path in re.findall(r"--constraint (\S+)", text):
        assert (FOLDER.parent / path).is_file()


def test_compose_gives_a_key_and_time_to_finish() -> None:
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["cvq"]
    taken = parsed(dockerfile()["ENTRYPOINT"][2:] + service["command"])
    (volume,) = service["volumes"]
    assert str(taken["api_key_file"]) == volume.split(":")[1]
    assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).samefile(FOLDER / "Dockerfile")
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert int(service["stop_grace_period"].removesuffix("s")) > taken["timeout"] == STOP_SECONDS


def test_the_unit_gives_a_key_and_time_to_finish() -> None:
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(FOLDER / "cvq-serve.service")
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(program).name, words[0]) == ("cvq", "serve")
    taken = parsed(words[1:])
    assert (taken["host"], str(taken["api_key_file"])) == ("127.0.0.1", "/etc/cvq/api-key")
    assert unit["Service"]["User"] not in ("", "root")
    assert int(unit["Service"]["TimeoutStopSec"]) > taken["timeout"] == STOP_SECONDS


def test_a_word_that_serve_does_not_take_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed(["--hosts", "0.0.0.0"])
