import numpy as np
import pytest
import torch

from diffmix.benchmarks.steps import build_model, load_rows, measure_epoch, measure_step, save_rows
from diffmix.tasks.encoding import EncodedDataset

CONFIG = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_labels": 3, "pad_token_id": 0}
DISTILBERT = {"vocab_size": 60, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "num_labels": 3}


@pytest.fixture
def rows(tmp_path):
    lengths = np.arange(1, 13)
    offsets = np.concatenate([[0], lengths.cumsum()])
    dataset = EncodedDataset(np.ones(offsets[-1], dtype=np.int32), offsets, np.arange(12) % 3)
    path = tmp_path / "rows.npz"
    save_rows(dataset, path)
    return path


@pytest.mark.parametrize(
    ("kind", "config", "dtype"),
    [("diffmix", CONFIG, "bf16"), ("obvious", CONFIG, "fp32"), ("distilbert", DISTILBERT, "fp32")],
)
def test_a_step_is_measured(kind, config, dtype):
    measured = measure_step(
        model={"type": kind, "config": config},
        batch=2,
        tokens=9,
        dtype=dtype,
        device="cpu",
        steps=2,
        warmup=1,
        baseline=0,
    )
    assert measured["tokens_per_second"] == pytest.approx(18 / measured["seconds_per_step"])
    assert measured["parameters"] == sum(p.numel() for p in build_model(kind, config).parameters())
    assert measured["peak_memory_bytes"] > 10**7  # above a baseline of 0: the whole process


def test_inference_and_checkpointing_steps_run():
    common = {"model": {"type": "diffmix", "config": CONFIG}, "batch": 2, "tokens": 9, "dtype": "fp32", "device": "cpu"}
    for keys in ({"training": False}, {"checkpointing": True}):
        assert measure_step(**common, **keys, steps=1, warmup=0, baseline=0)["seconds_per_step"] > 0


def test_rows_survive_the_way_to_the_worker(rows):
    dataset = load_rows(rows)
    assert dataset.lengths.tolist() == list(range(1, 13))
    assert dataset[4]["labels"] == 1


@pytest.mark.parametrize(("pad_to", "computed"), [(None, None), (16, 12 * 16)])
def test_an_epoch_counts_real_tokens_and_padding(rows, pad_to, computed):
    torch.manual_seed(0)
    measured = measure_epoch(
        model={"type": "diffmix", "config": CONFIG},
        rows=str(rows),
        batch=4,
        pad_to=pad_to,
        dtype="fp32",
        device="cpu",
        baseline=0,
    )
    assert measured["real_tokens"] == 78
    if pad_to is None:  # rows of like lengths stand together, padded to eights: 4 x (8 + 8 + 16)
        assert measured["computed_tokens"] == 128
    else:
        assert measured["computed_tokens"] == computed
