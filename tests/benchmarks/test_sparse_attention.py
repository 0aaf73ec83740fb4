import pytest
import torch

from diffmix.benchmarks.diffusion import diffusion, kernels
from diffmix.benchmarks.sparse_attention import LAYERS, OPERATORS, build_side, edge_list, flex, measure_sparse_attention
from diffmix.benchmarks.specs import Options
from diffmix.benchmarks.suites import run_benchmark
from diffmix.errors import RequestError
from diffmix.experiments.benchmark_tables import diffusion_table
from diffmix.ops import personalized_pagerank, reference
from diffmix.patterns import SparsePattern

SMALL = {"heads": 2, "channels": 4, "pattern": {"window": 4, "global_tokens": 2, "random_links": 1}, "hops": 2}


def test_the_edge_list_computes_the_same():
    pattern = SparsePattern(4, 2, 1)
    states = [torch.randn(1, 2, 40, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    theta, probe = personalized_pagerank(0.1, 3), torch.randn(1, 2, 40, 4, dtype=torch.float64)
    results = []
    for function in (edge_list, reference.attention_diffusion):
        out = function(*states, pattern, coefficients=theta)
        results.append((out, *torch.autograd.grad((out * probe).sum(), states)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("causal", [False, True])
def test_flex_attention_computes_the_same(causal):
    pattern = SparsePattern(4, 2, 1, causal=causal)
    states = [torch.randn(1, 2, 300, 16) for _ in range(3)]
    theta = personalized_pagerank(0.1, 3)
    expected = reference.attention_diffusion(*states, pattern, coefficients=theta)
    torch.testing.assert_close(flex(*states, pattern, coefficients=theta), expected, atol=1e-5, rtol=1e-5)


def test_the_layers_attend_to_the_same_tokens():
    """With equal projections, no random links and one hop, ours is Longformer's but for the rows of global tokens, for which that
    one has projections of their own."""
    options = {**SMALL, "pattern": {"window": 4, "global_tokens": 2}, "hops": 1, "alpha": 0.0}
    ours, longformer = build_side("layer", **options), build_side("longformer", **options)
    theirs = longformer.attention
    with torch.no_grad():
        ours.query_key_value.weight.copy_(torch.cat([theirs.query.weight, theirs.key.weight, theirs.value.weight]))
        ours.query_key_value.bias.copy_(torch.cat([theirs.query.bias, theirs.key.bias, theirs.value.bias]))
        hidden = torch.randn(1, 32, 8)
        torch.testing.assert_close(ours(hidden)[:, 2:], longformer(hidden)[:, 2:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [*OPERATORS, *LAYERS])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_side_is_measured(side, dtype):
    measured = measure_sparse_attention(
        side=side, tokens=32, alpha=0.1, dtype=dtype, device="cpu", steps=1, baseline=0, **SMALL
    )
    assert min(measured["seconds"]) > 0


def test_peak_memory_counts_what_the_definition_makes():
    """The scores of two heads alone are [2, N, N] in fp32."""
    measured = measure_sparse_attention(
        side="materialised", tokens=2048, alpha=0.1, dtype="fp32", device="cpu", steps=1, baseline=0, **SMALL
    )
    assert measured["peak_memory_bytes"] > 2 * 2048**2 * 4


def test_the_benchmark_compares_and_shows_it(tmp_path):
    """A worker that takes a second and a byte for each token, ten times as much for the peers of a model."""

    def worker(spec):
        slow = 1 if spec["side"] in ("ours", "recompute", "layer") else 10
        return {"seconds": slow * spec["tokens"], "peak_memory_bytes": slow * spec["tokens"]}

    options = Options(dtype="fp32", device="cpu", tokens=1024, repetitions=2)
    _, result = run_benchmark(
        "diffusion",
        options,
        tmp_path / "out.json",
        notice=lambda _: None,
        workers=lambda specs: [worker(spec) for spec in specs],
    )
    medians = {name: ratio["median"] for name, ratio in result["ratios"].items()}
    assert medians.pop("time of twice the tokens") == 2
    assert medians.pop("memory of fused attention") == 0.1
    assert medians.pop("recomputing, memory of fused attention") == 0.1
    assert len(medians) == 12  # of four layers and of the operator
    assert set(medians.values()) == {10}
    table = diffusion_table(result)
    assert "| faster than an edge list " in table
    assert "| edge list " in table
    assert "4 heads of 64, window 64, global tokens 16, random links 8, 5 hops, fp32." in table


def test_on_cuda_the_candidates_are_compared():
    """A worker that takes twice as long for blocks, and ten times for torch's own."""

    def worker(spec):
        slow = {"triton": 1, "flex": 10}.get(spec["side"], 2)
        return {"seconds": slow * spec["tokens"], "peak_memory_bytes": slow * spec["tokens"]}

    options = Options(dtype="bf16", device="cuda", tokens=1024, repetitions=1)
    result = kernels(options, lambda _: None, lambda specs: [worker(spec) for spec in specs])
    ratios = {name: ratio["median"] for name, ratio in result["ratios"].items()}
    assert ratios["triton, faster than blocks"] == 2
    assert ratios["triton, memory of blocks"] == 0.5
    assert ratios["flex, faster than blocks"] == 0.2
    assert ratios["triton, time of twice the tokens"] == ratios["flex, time of twice the tokens"] == 2


def test_kernels_are_measured_on_cuda():
    with pytest.raises(
        RequestError, match="device is cpu: kernels are measured on cuda; for a CPU there is bench diffusion"
    ):
        kernels(Options(dtype="fp32", device="cpu"), print, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(dtype="fp32", tokens=1000), "tokens is 1000: give a multiple of 512"),
        (Options(dtype="fp16"), "dtype is fp16: diffusion is measured in fp32 and bf16"),
    ],
)
def test_wrong_requests_are_named(options, message):
    with pytest.raises(RequestError, match=message):
        diffusion(options, print, None)
