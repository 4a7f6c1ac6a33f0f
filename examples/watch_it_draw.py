"""Text -> an animated GIF of the picture as it gets richer, token by token.

python examples/watch_it_draw.py "a photo of two bananas" drawing.gif
"""

import argparse

from PIL import Image

from channelvq import CAR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("output")
    parser.add_argument("--every", type=int, default=4, help="tokens between two frames")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=4)
    given = parser.parse_args()
    car = CAR.from_pretrained("bundled")
    frames = [step.images[0] for step in car.stream([given.prompt], every=given.every, seed=given.seed)]
    large = [frame.resize([side * given.scale for side in frame.size], Image.Resampling.NEAREST) for frame in frames]
    large[0].save(given.output, save_all=True, append_images=large[1:], duration=150, loop=0)
    print(f"{len(large)} frames -> {given.output}")


if __name__ == "__main__":
    main()
