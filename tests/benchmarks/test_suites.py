import dataclasses
import json

import pytest

from diffmix.benchmarks.harness import alternate, medians, ratio, run_workers
from diffmix.benchmarks.long_range import MIXERS, SHAPE
from diffmix.benchmarks.specs import Options, model_of, softmax_config, vocabulary_size
from diffmix.benchmarks.suites import BENCHMARKS, run_benchmark
from diffmix.errors import RequestError, RunError
from diffmix.experiments.benchmark_tables import generation_table, long_range_table
from diffmix.models import DiffmixConfig
from diffmix.tasks.long_range_arena import generated
from diffmix.training.recipe import load_recipe

RECIPE = """
task: text_file
tokenizer: wordpiece-400
max_length: 16
hidden_size: 16
num_hidden_layers: 2
batch_size: 4
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    lines = [f'"{"good" if row % 2 else "bad"} text {"word " * (row % 7)}number {row}",{row % 2}' for row in range(60)]
    path.write_text("\n".join(["text,label", *lines]))
    return str(path)


def test_sides_take_turns_and_the_order_alternates():
    order = []

    def workers(specs):
        order.extend(spec["side"] for spec in specs)
        return [{"value": len(order), "note": "text"} for _ in specs]

    runs = alternate({"a": {"side": "a"}, "b": {"side": "b"}}, 3, notice=lambda _: None, workers=workers)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [run["value"] for run in runs["a"]] == [1, 4, 5]
    assert medians(runs)["a"]["value"] == 4
    assert medians(runs)["a"]["runs"] == runs["a"]


def test_whole_numbers_stay_whole_and_other_lists_are_left_alone():
    told = []
    measured = {"bytes": 2**40 + 1, "steps": [3, 4], "seconds": 0.5, "names": ["a", "b"], "fits": True}
    runs = alternate({"a": {}}, 2, notice=told.append, workers=lambda _: [measured])
    found = medians(runs)["a"]
    assert {key: value for key, value in found.items() if key != "runs"} == {
        "bytes": 2**40 + 1,
        "steps": 3,
        "seconds": 0.5,
    }
    assert isinstance(found["bytes"], int)
    assert "names" not in told[0]
    uneven = medians({"a": [{"bytes": 4}, {"bytes": 6}]})["a"]["bytes"]
    assert (uneven, type(uneven)) == (5, int)


def test_ratios_are_taken_pair_by_pair():
    found = ratio([{"x": 2.0}, {"x": 9.0}, {"x": 4.0}], [{"x": 1.0}, {"x": 3.0}, {"x": 4.0}], "x")
    assert found == {"median": 2.0, "low": 1.0, "high": 3.0, "pairs": [2.0, 3.0, 1.0]}


def test_the_worker_measures_in_a_process_of_its_own():
    config = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_labels": 3}
    spec = {"kind": "step", "model": {"type": "diffmix", "config": config}, "batch": 2, "tokens": 8}
    (measured,) = run_workers([{**spec, "dtype": "fp32", "device": "cpu", "steps": 1}])
    assert 0 < measured["peak_memory_bytes"] < 2**28


def test_together_single_steps_are_paired():
    spec = {
        "kind": "attention",
        "tokens": [8, 16],
        "heads": 1,
        "channels": 4,
        "dtype": "fp32",
        "device": "cpu",
        "steps": 3,
    }
    sides = {side: {**spec, "side": side} for side in ("sdpa", "dot")}
    runs = alternate(sides, 1, notice=lambda _: None, together=True)
    for (measured,) in runs.values():
        assert len(measured["both/8"]) == 6  # twice as many of half the length
        assert len(measured["both/16"]) == 3
        assert all(seconds > 0 for seconds in measured["both/8"])
    found = ratio([{"x": [2.0, 9.0, 4.0]}], [{"x": [1.0, 1.0, 4.0]}], "x")
    assert found == {"median": 2.0, "low": 2.0, "high": 2.0, "pairs": [2.0]}
    assert medians({"a": [{"x": [2.0, 9.0]}, {"x": [4.0, 3.0]}]})["a"]["x"] == 2.5


def test_where_one_process_fails_the_others_end():
    spec = {"kind": "attention", "tokens": [8], "heads": 1, "channels": 4, "dtype": "fp32", "device": "cpu"}
    endless = {**spec, "side": "sdpa", "steps": 10**9}
    with pytest.raises(RunError, match=r"measuring attention failed: .*no_such_side"):
        run_workers([endless, {**spec, "side": "no_such_side", "steps": 1}])


def fake(spec):
    """Costs that follow from the spec, so that a suite's arithmetic can be checked."""
    if spec["kind"] == "operators":
        slower = 2.0 if spec["candidate"] == "rolled_linears" else 1.0
        return {
            f"{what}/{d}/{w}": slower for what in ("forward", "both") for d in spec["dtypes"] for w in spec["widths"]
        }
    if spec["kind"] == "parts":
        return {f"dropout/{d}": 2.0 if spec["side"] == "plain" else 1.0 for d in spec["dtypes"]}
    slower = {"diffmix": 1.0, "obvious": 3.0, "distilbert": 20.0}[spec["model"]["type"]]
    if spec["kind"] == "epoch":
        slower *= 2 if spec["pad_to"] else 1
        return {"real_tokens_per_second": 100 / slower, "peak_memory_bytes": 10 * slower}
    cost = spec["tokens"] * slower * (1 if spec.get("training", True) else 0.5)
    return {"seconds_per_step": cost, "tokens_per_second": 1 / cost, "peak_memory_bytes": cost, "parameters": 5}


def measure(name, tmp_path, **options):
    path, result = run_benchmark(
        name,
        Options(**options, dtype="fp32", device="cpu", repetitions=2),
        tmp_path / "r.json",
        notice=lambda _: None,
        workers=lambda specs: [fake(spec) for spec in specs],
    )
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert str(tmp_path) not in path.read_text()
    assert {"command", "environment", "dtype", "seconds", "repetitions"} <= set(result)
    return result


def test_distilbert(tmp_path, recipe):
    result = measure("distilbert", tmp_path, recipe=recipe)
    assert result["ratios"]["ours"]["less_memory"]["median"] == 20
    assert result["ratios"]["paper"]["more_tokens_per_second"]["median"] == pytest.approx(20)
    models = result["settings"]["models"]
    assert models["distilbert"]["config"]["attention_dropout"] == 0.1
    assert models["distilbert_fused"]["config"] == {**models["distilbert"]["config"], "attention_dropout": 0.0}
    assert (
        models["distilbert"]["config"] | {"dim": 768, "n_layers": 6, "hidden_dim": 3072, "vocab_size": 30522}
        == (models["distilbert"]["config"])
    )
    assert models["ours"]["config"]["hidden_size"] == 16
    assert result["settings"]["tokens"] == 512
    assert result["settings"]["batch"] == 32


def test_obvious_reads_the_recipes_data(tmp_path, recipe, texts):
    result = measure("obvious", tmp_path, recipe=recipe, data=texts, tokens=16)
    assert result["equal_batches"]["ratios"]["more_tokens_per_second"]["median"] == pytest.approx(3)
    assert result["epoch"]["ratios"]["more_real_tokens_per_second"]["median"] == pytest.approx(6)
    assert result["settings"]["epoch"]["rows"] > 20
    assert result["largest_logit_difference"] < 1e-5
    assert texts not in json.dumps(result)


def test_scaling(tmp_path, recipe):
    result = measure("scaling", tmp_path, recipe=recipe)
    assert result["ratios"]["time"]["median"] == pytest.approx(4)
    assert "softmax/16384" in result["sides"]
    assert "softmax/65536" not in result["sides"]


def test_long_range(tmp_path):
    result = measure("long_range", tmp_path, tokens=20_000)
    assert result["settings"]["tokens"] == [1_024, 2_048, 4_096, 16_384]
    assert set(result["ratios"]["neighbor/4096"]) == {"faster", "less_memory"}
    table = long_range_table(result)
    assert "16,384 tokens" in table
    assert "range over pairs" in table
    assert "Measured once" in long_range_table({**result, "repetitions": 1})
    for side in MIXERS.values():
        DiffmixConfig(**SHAPE, **side)


def test_generation(tmp_path, monkeypatch):
    small = {name: dataclasses.replace(generated.GENERATED[name], rows=(6, 2, 2)) for name in ("listops", "pathfinder")}
    monkeypatch.setattr("diffmix.benchmarks.generation.GENERATED", small)
    monkeypatch.setattr(generated, "GENERATED", small)
    result = measure("generation", tmp_path)
    assert result["sides"]["pathfinder"]["connected_share"] == 0.5
    assert 500 < result["sides"]["listops"]["length_median"] < 2000
    assert all(side["rows"] == 10 and side["seconds"] > 0 for side in result["sides"].values())
    assert "connected 50.0%" in generation_table(result)


def test_operators(tmp_path):
    result = measure("operators", tmp_path)
    assert result["ratios"]["library"]["both/fp32/256"]["median"] == 2


def test_parts(tmp_path):
    result = measure("parts", tmp_path)
    assert result["ratios"]["dropout/fp32"]["median"] == 2


def test_paper_memory(tmp_path, recipe):
    result = measure("paper_memory", tmp_path, recipe=recipe)
    assert set(result["sides"]) == {
        f"{what}/{dtype}"
        for what in ("training", "training with checkpointing", "inference")
        for dtype in ("fp32", "bf16")
    }


def test_requests_are_checked_before_anything_is_measured(tmp_path, recipe):
    def never(spec):
        raise AssertionError

    existing = tmp_path / "there.json"
    existing.write_text("{}")
    for name, options, output, message in (
        ("distilbret", Options(), None, "unknown"),
        ("distilbert", Options(recipe=recipe), existing, "exists"),
        ("distilbert", Options(recipe=recipe, batch=0), tmp_path / "x.json", "batch is 0"),
        (
            "operators",
            Options(recipe=recipe),
            tmp_path / "x.json",
            "operators measures no recipe's model: leave it out",
        ),
        (
            "scaling",
            Options(recipe=recipe, limit=5),
            tmp_path / "x.json",
            "limit is 5, but benchmark scaling reads no data",
        ),
        (
            "distilbert",
            Options(data="here"),
            tmp_path / "x.json",
            "data is 'here', but benchmark distilbert reads no data",
        ),
        ("distilbert", Options(recipe=f"{recipe}:model=tfidf"), tmp_path / "x.json", "model=tfidf"),
    ):
        with pytest.raises(RequestError, match=message):
            run_benchmark(name, options, output, notice=lambda _: None, workers=never)
    assert existing.read_text() == "{}"
    assert not (tmp_path / "x.json").exists()


def test_models_follow_from_recipes(recipe):
    model = model_of(load_recipe(recipe), 64)
    assert model["config"]["vocab_size"] == 400
    assert vocabulary_size("bytes") == 260
    softmax = DiffmixConfig(**softmax_config({**model["config"], "norm_placement": "post", "neighbor_offsets": [0]}))
    assert softmax.mixer == "softmax"
    assert softmax.hidden_size == 16


def test_every_benchmark_says_what_it_measures():
    assert all(function.__doc__ for function in BENCHMARKS.values())
