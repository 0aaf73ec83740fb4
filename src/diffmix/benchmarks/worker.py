"""The process that measures one side: `python -m diffmix.benchmarks.worker JSON` prints one line of JSON.

Everything it will need is imported before the baseline of its memory is taken, and nothing else is in the process.
"""

from __future__ import annotations

import json
import sys

import torch

import diffmix.models  # noqa: F401  (registers the model type; part of the imports that memory is counted from)
from diffmix.benchmarks.attention import measure_attention
from diffmix.benchmarks.operators import measure_operators
from diffmix.benchmarks.parts import measure_parts
from diffmix.benchmarks.sparse_attention import measure_sparse_attention
from diffmix.benchmarks.steps import import_model, measure_epoch, measure_step
from diffmix.benchmarks.turns import take_turns
from diffmix.errors import RequestError
from diffmix.training.hardware import reset_peak_memory, resident_memory, tune_cpu

KINDS = {
    "step": measure_step,
    "epoch": measure_epoch,
    "operators": measure_operators,
    "parts": measure_parts,
    "attention": measure_attention,
    "sparse_attention": measure_sparse_attention,
}


def main() -> None:
    """Measure what the first argument describes."""
    spec = json.loads(sys.argv[1])
    kind = spec.pop("kind")
    if kind not in KINDS:
        raise RequestError(f"kind is {kind!r}; give one of {', '.join(KINDS)}")
    if "model" in spec:
        import_model(spec["model"]["type"])
    if spec.pop("tuned", False):
        tune_cpu()
    if spec.pop("turns", False):
        take_turns()
    torch.manual_seed(0)
    reset_peak_memory()
    print(json.dumps(KINDS[kind](**spec, baseline=resident_memory())))


if __name__ == "__main__":
    main()
