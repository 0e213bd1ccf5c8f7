"""`python -m benchmarks NAME…`; without a name, all that take minutes and not an hour."""

import sys

from benchmarks.loading import loading
from benchmarks.training import accuracy, overhead, pipeline

BENCHMARKS = {f.__name__: f for f in (overhead, pipeline, loading, accuracy)}

for name in sys.argv[1:] or ["overhead", "pipeline", "loading"]:
    if name not in BENCHMARKS:
        sys.exit(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    BENCHMARKS[name]()
