"""`python -m benchmarks NAME…`; without a name, all that take minutes and not an hour."""

import sys

from benchmarks.cells import cells
from benchmarks.faults import faults
from benchmarks.folder import finetune, photographs
from benchmarks.loading import loading
from benchmarks.scale import scale
from benchmarks.training import accuracy, overhead, pipeline
from benchmarks.zoo import zoo

BENCHMARKS = {
    f.__name__: f
    for f in (overhead, pipeline, photographs, loading, scale, cells, accuracy, finetune, faults, zoo)
}

for name in sys.argv[1:] or ["overhead", "pipeline", "photographs", "loading"]:
    if name not in BENCHMARKS:
        sys.exit(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    BENCHMARKS[name]()
