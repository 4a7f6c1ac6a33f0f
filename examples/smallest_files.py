"""Pictures -> .cvq files of at most so many bytes, and what each length keeps.

python examples/smallest_files.py photo.jpg --bytes 24 48 96
"""

import argparse
from pathlib import Path

from channelvq import CVQTokenizer
from channelvq.codec import compress, decompress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--bytes", type=int, nargs="+", default=[24, 48, 96])
    parser.add_argument("--output", type=Path, default=Path("."))
    given = parser.parse_args()
    tok = CVQTokenizer.from_pretrained("bundled")
    (whole,) = compress([given.picture], tok)
    for count in given.bytes:
        # The beginning of a file is a picture: there is nothing to encode again.
        cut = whole[:count]
        path = given.output / f"{given.picture.stem}-{len(cut)}.cvq"
        path.write_bytes(cut)
        decompress([cut], tok)[0].save(path.with_suffix(".png"))
        print(f"{path}: {len(cut)} of {len(whole)} bytes")


if __name__ == "__main__":
    main()
