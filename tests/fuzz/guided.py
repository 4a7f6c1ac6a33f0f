"""Inputs that coverage guides, by atheris: `python tests/fuzz/guided.py KIND [options of libFuzzer]`, or `make guided`.

Where hypothesis draws inputs anew, libFuzzer changes those that reached a new branch of our code. What falls is written
to a file `crash-...` in the folder; put it into tests/fuzz/corpus/KIND.
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["channelvq"]):
    from tests.fuzz.hammer import taken_or_refused
    from tests.fuzz.kinds import CVQ, MANIFEST, OVERRIDES, STATE, TOKEN_SHARDS, TOKENS, WEIGHTS, as_json, calls, shard

GUIDED = {
    "manifest": MANIFEST, "tokens": [as_json(TOKENS)], "checkpoint": [as_json(STATE)], "weights": WEIGHTS,
    "shard": [shard()], "token-shards": [as_json(TOKEN_SHARDS)], "cvq": CVQ, "overrides": OVERRIDES,
}  # fmt: skip


def main() -> None:
    kind, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CHANNELVQ_CACHE"] = f"{folder}/cache"
        seeds = Path(folder, "seeds")
        seeds.mkdir()
        known = sorted((Path(__file__).parent / "corpus" / kind).glob("*"))
        for i, content in enumerate([*GUIDED[kind], *(path.read_bytes() for path in known)]):
            (seeds / str(i)).write_bytes(content)
        call = calls(Path(folder))[kind]
        atheris.Setup([sys.argv[0], *options, "-timeout=5", "-rss_limit_mb=4096", str(seeds)],
                      lambda content: taken_or_refused(call, content))  # fmt: skip
        atheris.Fuzz()


if __name__ == "__main__":
    main()
