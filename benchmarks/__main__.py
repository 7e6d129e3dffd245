"""`python -m benchmarks [NAME ...]` runs the named benchmarks, or all of them."""

import importlib
import sys
from pathlib import Path

# What benchmarks are made of.
PARTS = (
    *("density_unet", "measure", "ours", "record", "sahi_merging", "scene_rivals", "stitching_scene", "theirs"),
    *("buildings_scene", "shifts", "volume_adaptation", "volume_training"),
)
NAMES = sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py") if p.stem not in PARTS)

if __name__ == "__main__":
    wanted = sys.argv[1:] or NAMES
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        sys.exit(f"{', '.join(unknown)}: no such benchmark; there are {', '.join(NAMES)}")
    for name in wanted:
        importlib.import_module(f"benchmarks.{name}").main()
