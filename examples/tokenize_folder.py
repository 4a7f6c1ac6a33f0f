"""A folder of pictures -> one .npz of ids and names: what a model of yours trains on.

python examples/tokenize_folder.py my/photos ids.npz
"""

import argparse
from pathlib import Path

import numpy as np

from channelvq import CVQTokenizer
from channelvq.images import find_images, read_images

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", default="bundled", help="a folder or a hub repository")
    given = parser.parse_args()
    tok = CVQTokenizer.from_pretrained(given.tokenizer)
    pairs, skipped = read_images([given.folder], size=tok.image_size)
    names, rows, batch = [], [], []
    for name, picture in pairs:
        names.append(str(name))
        batch.append(picture)
        if len(batch) == BATCH:
            rows.append(tok.tokenize(batch).numpy())
            batch = []
    if batch:
        rows.append(tok.tokenize(batch).numpy())
    ids = np.concatenate(rows) if rows else np.zeros((0, tok.num_tokens), np.int64)
    np.savez(given.output, ids=ids, names=np.array(names))
    found = len(find_images(given.folder))
    print(f"{len(ids)} of {found} pictures, {len(skipped)} skipped -> {given.output}: ids {ids.shape}")


if __name__ == "__main__":
    main()
