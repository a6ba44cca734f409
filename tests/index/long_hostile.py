"""
The long form of test_hostile: the whole corpus with the limits of the product, then many random mutations.

Example: python tests/index/long_hostile.py --mutations 5000 --seed 3
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from hostile_corpus import corpus, mutations
from hostile_watch import Watch

from ryorin_index.sandbox import call


def main() -> None:
    """Read all, print a table and a last line of JSON; exit code 1 when anything went wrong."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--mutations", type=int, default=5000)
    words.add_argument("--seed", type=int, default=1)
    chosen = words.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = str(Path(folder, "tmp"))
        Path(folder, "tmp").mkdir()
        call("ryorin_index.sandbox.confinement:describe", "start", b"")
        watch = Watch(Path(folder))
        cases = list(corpus(watch.port, watch.secret))
        kinds = watch.read(cases)
        for kind, reason in sorted(kinds.reasons.items()):
            print(f"{kind:45} {' '.join(reason.split())[:110]}")
        changed = watch.read(mutations(chosen.mutations, chosen.seed))
        result = {
            "kinds": len(cases),
            "mutations": chosen.mutations,
            "kinds_ended": dict(kinds.ends),
            "mutations_ended": dict(changed.ends),
            "wrongs": kinds.wrongs + changed.wrongs,
            "connections": watch.connections,
            "strays": sorted(watch.strays()),
            "slowest_s": [kinds.slowest(), changed.slowest(2)],
            "seconds": round(time.monotonic() - began, 1),
        }
        watch.close()
    print(json.dumps(result))
    sys.exit(bool(result["wrongs"] or result["connections"] or result["strays"]))


if __name__ == "__main__":
    main()
