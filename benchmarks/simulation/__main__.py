"""``python -m benchmarks.simulation [--only WORD] [--repeats N] [W1 ...]``: race and print, write nothing."""

import argparse
import json

from benchmarks.simulation import measure

parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation")
parser.add_argument("works", nargs="*", help="W1 W2 W3 W4; all if none is named")
parser.add_argument("--only", default="", help="contenders whose key holds this word")
parser.add_argument("--repeats", type=int, default=3)
told = parser.parse_args()
print(json.dumps(measure(told.works, told.only, told.repeats), indent=2))
