"""`python -m benchmarks [NAME ...]` runs the named benchmarks, or says which there are."""

import importlib
import sys
from pathlib import Path

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py") if p.stem != "record")

if __name__ == "__main__":
    wanted = sys.argv[1:]
    unknown = [name for name in wanted if name not in NAMES]
    if unknown or not wanted:
        sys.exit(f"usage: python -m benchmarks NAME ...   with NAME among: {', '.join(NAMES)}")
    for name in wanted:
        importlib.import_module(f"benchmarks.{name}").main()
