"""What all suites share: cases and their records, timing, paired intervals, processes, the peer, data, tables.

Nothing here imports pickglass or torch before a case asks for it: parts of a suite also run in the peer's environment.
"""

from bench.harness.data import add_data, add_sets, only_set, shared_folder
from bench.harness.peer import add_peer, run_peer
from bench.harness.precisions import engines, in_precision
from bench.harness.processes import apart, apart_or_error, peak_mb
from bench.harness.records import Record
from bench.harness.suite import Case, Suite
from bench.harness.tables import differences, interval, markdown
from bench.harness.timing import best, middle, rate, seconds, turns

__all__ = [
    "Case",
    "Record",
    "Suite",
    "add_data",
    "add_peer",
    "add_sets",
    "apart",
    "apart_or_error",
    "best",
    "differences",
    "engines",
    "in_precision",
    "interval",
    "markdown",
    "middle",
    "only_set",
    "peak_mb",
    "rate",
    "run_peer",
    "seconds",
    "shared_folder",
    "turns",
]
