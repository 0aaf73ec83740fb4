"""What every test shares: one thread (tests measure nothing), no network, reproducible hypothesis."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
if (
    "DIFFMIX_DATA" in os.environ
):  # tests never depend on what a machine happens to hold; those that check data skip without
    os.environ["DIFFMIX_TEST_DATA"] = os.environ.pop("DIFFMIX_DATA")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "diffmix", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("acceptance", settings.get_profile("diffmix"), max_examples=10_000)
settings.load_profile("diffmix")


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # which `diffmix train` sets for its process
