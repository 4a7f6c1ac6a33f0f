"""What a newcomer waits for: the wheel, installed in an empty environment without extras, until `cvq demo` has drawn.

    python scripts/newcomer.py results/package.json

Nothing of this checkout's environment is used but its Python; constraints.txt decides the versions. Downloads take as
long as the index is away: pip's own cache is off, so that an install is a first one.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 8


def main(result: Path) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place)
        wheel = build(folder / "wheel")
        figures = {
            "wheel": {"name": wheel.name, "bytes": wheel.stat().st_size},
            **installed(folder / "empty", wheel),
            "demo": demo(folder),
            "machine": {"python": platform.python_version(), "system": platform.system(), "cores": os.cpu_count(),
                        "load": round(os.getloadavg()[0], 2)},
        }  # fmt: skip
    result.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def build(folder: Path) -> Path:
    """The wheel, as `pip install .` would make it, without what it needs."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed(folder: Path, wheel: Path) -> dict[str, object]:
    """Seconds and bytes of an installation in an empty environment, and its largest packages."""
    venv.create(folder, with_pip=True)
    before = size(folder)
    seconds, cpu = timed([folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-cache-dir", "--constraint",
                          ROOT / "constraints.txt", wheel])  # fmt: skip
    packages = next(folder.glob("lib/*/site-packages"))
    sizes = {path.name: size(path) for path in packages.iterdir() if path.is_dir()}
    largest = sorted(sizes.items(), key=lambda entry: -entry[1])[:LARGEST]
    freeze = subprocess.run([folder / "bin/python", "-m", "pip", "freeze"], check=True, capture_output=True, text=True)
    return {
        "install": {"seconds": seconds, "cpu_seconds": cpu, "bytes": size(folder) - before,
                    "packages": len(freeze.stdout.splitlines()), "largest": dict(largest)},
    }  # fmt: skip


def demo(folder: Path) -> dict[str, object]:
    """Seconds from `cvq demo` to its first picture and to its end, on a machine that has no cache of ours yet."""
    home = folder / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CHANNELVQ_CACHE")}
    environment |= {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    began, first = time.perf_counter(), None
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([folder / "empty/bin/cvq", "demo"], cwd=home, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if first is None and any(home.glob("demo/*.png")):
            first = time.perf_counter() - began
        time.sleep(0.05)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"cvq demo ended with {process.returncode}")
    return {
        "first_picture_seconds": round(first or seconds, 1), "seconds": round(seconds, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "pictures": len(list(home.glob("demo/*.png"))),
    }  # fmt: skip


def timed(command: list[object]) -> tuple[float, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(list(map(str, command)), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(time.perf_counter() - began, 1), round(
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
    )


def size(folder: Path) -> int:
    """Bytes of all files below, links not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
