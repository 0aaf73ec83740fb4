"""`diffmix bench generation`: how long it takes to draw the generated sets of the Long Range Arena, and what is in them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from diffmix.benchmarks.harness import Notice, medians
from diffmix.benchmarks.specs import Options
from diffmix.tasks.long_range_arena.generated import GENERATED, processors, write_generated

SETS = ("listops", "pathfinder")


def generation(options: Options, notice: Notice, workers: Any) -> dict[str, Any]:
    """Each set of the arena that is generated, drawn and checked in full size on all processors, then thrown away."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SETS}
    for name in SETS * options.repetitions:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            header = write_generated(name, Path(folder) / name).header
            seconds = time.perf_counter() - started
        runs[name].append({"rows": sum(GENERATED[name].rows), "seconds": seconds, **header["statistics"]})
        notice(f"{name}: {seconds:.0f} s")
    return {"settings": {"processors": processors()}, "sides": medians(runs)}
