"""docs/expectations.md: a table that can be counted, and a file that citation tools read."""

import json
import re
from pathlib import Path

import yaml

from channelvq import __version__

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/expectations.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" |")] for line in PAGE.splitlines() if re.match(r"\| \d", line)
]


def test_rows_are_numbered_and_every_cell_is_one_of_the_words() -> None:
    assert [int(row[0].lstrip("| ")) for row in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 60
    for row in ROWS:
        assert len(row) == 10, row
        assert set(row[2:9]) <= {"yes", "part", "no", "-", "?"}, row


def test_what_we_have_not_is_told_at_the_end() -> None:
    numbers = {
        int(n) for n in re.findall(r"\d+", " ".join(re.findall(r"\(([\d, to]+)\)", PAGE.split("## What we")[1])))
    }
    for first, last in re.findall(r"(\d+) to (\d+)", PAGE.split("## What we")[1]):
        numbers |= set(range(int(first), int(last) + 1))
    assert {int(row[0].lstrip("| ")) for row in ROWS if row[2] == "no"} <= numbers


def test_the_citation_file_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_the_measured_installation_is_told_as_it_is_stored() -> None:
    figures = json.loads((ROOT / "results/package.json").read_text())
    install, demo, wheel = figures["install"], figures["demo"], figures["wheel"]
    section = (ROOT / "docs/results.md").read_text().split("## What a newcomer waits for")[1].split("## ")[0]
    text = " ".join(section.split())
    for part in (
        f"{wheel['bytes'] / 1e6:.1f} MB", f"{install['bytes'] / 1e9:.2f} GB in {install['packages']} packages",
        f"{install['largest']['torch'] / 1e6:.0f} MB of it torch", f"after {demo['first_picture_seconds']} seconds",
        f"all {demo['pictures']} after {demo['seconds']:.0f}", f"{demo['cpu_seconds']} of processor time",
        f"load {figures['machine']['load']:.0f}", f"{install['seconds']:.0f} seconds", f"({install['cpu_seconds']} of",
    ):  # fmt: skip
        assert part in text, part
    assert wheel["bytes"] < 40e6
