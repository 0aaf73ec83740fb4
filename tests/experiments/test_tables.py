import json
from pathlib import Path

import pytest

from diffmix.errors import RequestError
from diffmix.experiments.benchmark_tables import convergence_table
from diffmix.experiments.markdown import markdown
from diffmix.experiments.tables import comparison_table, main, make_table, regenerate

ROOT = Path(__file__).parents[2]


def comparison(accuracy=0.9):
    metrics = {"test/accuracy": accuracy, "test/n": 100.0, "train/peak_memory_bytes": 2e8, "parameters": 5_000_000}
    return {
        "comparison": "x",
        "command": "diffmix compare x",
        "seeds": 1,
        "environment": {"device": "a CPU"},
        "rows": [{"recipe": "x", "metrics": metrics}],
    }


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "compare-x.json").write_text(json.dumps(comparison()))
    (tmp_path / "README.md").write_text("before\n<!-- table: compare-x -->\n<!-- end -->\nafter\n")
    return tmp_path


def test_readme_and_docs_are_up_to_date_with_the_results():
    """Run `make results` when this fails; it names a result that is missing."""
    assert regenerate(ROOT, check=True) == []


def test_blocks_are_filled_and_stay_as_they_are(root):
    readme = root / "README.md"
    assert regenerate(root, check=True) == [readme]
    assert "90.00" not in readme.read_text()
    assert regenerate(root) == [readme]
    text = readme.read_text()
    assert text.startswith("before\n<!-- table: compare-x -->\n| recipe")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "90.00" in text
    assert "`diffmix compare x`" in text
    assert regenerate(root) == []
    (root / "results" / "compare-x.json").write_text(json.dumps(comparison(0.8)))
    assert regenerate(root) == [readme]
    assert "80.00" in readme.read_text()
    assert "90.00" not in readme.read_text()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("<!-- table: compare-y -->\n<!-- end -->", "README.md, table compare-y: .*compare-y.json is missing"),
        ("<!-- table: nonsense -->\n<!-- end -->", "nonsense: there is no such table"),
        ("<!-- table: compare-x -->\n", "without an end"),
    ],
)
def test_what_cannot_be_filled_is_named_and_changes_nothing(root, block, message, capsys):
    (root / "docs" / "more.md").write_text("<!-- table: compare-x -->\n<!-- end -->\n")
    (root / "README.md").write_text(block + "\n")
    with pytest.raises(RequestError, match=message):
        regenerate(root)
    assert (root / "docs" / "more.md").read_text() == "<!-- table: compare-x -->\n<!-- end -->\n"
    assert main(["--root", str(root)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_says_what_it_did(root, capsys):
    assert main(["--root", str(root), "--check"]) == 1
    assert main(["--root", str(root)]) == 0
    assert main(["--root", str(root), "--check"]) == 0
    assert "README.md rewritten" in capsys.readouterr().out


def test_a_comparison_names_all_that_its_rows_were_trained_on(root):
    result = comparison()
    made = {"device": "a CPU", "device_type": "cpu", "threads": 1, "revision": "a" * 40}
    result["rows"] = [{**result["rows"][0], "environment": {**made, "threads": threads}} for threads in (2, 1, 2)]
    result["environment"] = result["rows"][0]["environment"]
    table = comparison_table(result)
    assert "(a CPU, 1 threads; a CPU, 2 threads)" in table
    assert "Rows were trained at revisions" not in table
    result["rows"][1]["environment"] = {**made, "threads": 2, "revision": "b" * 40}
    table = comparison_table(result)
    assert "Devices differ" not in table
    assert "Rows were trained at revisions aaaaaaaa, bbbbbbbb." in table


def test_markdown_lines_up_and_keeps_its_columns():
    lines = markdown(["a", "b"], [["one|two", "3"], ["x", "45678"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "one\\|two" in lines[2]


RATIO = {"median": 31.25, "low": 30.0, "high": 33.0, "pairs": []}
SIDE = {
    "parameters": 4_100_000,
    "peak_memory_bytes": 1.5e8,
    "tokens_per_second": 250_000,
    "real_tokens_per_second": 100_000,
    "seconds_per_step": 0.05,
}
COMMON = {"command": "diffmix bench", "environment": {"device": "a CPU"}, "recipe": "ag_news", "dtype": "bf16"}
BENCHES = {
    "distilbert": {
        "settings": {"batch": 32, "tokens": 512},
        "sides": dict.fromkeys(("ours", "paper", "distilbert", "distilbert_fused"), SIDE),
        "ratios": dict.fromkeys(
            ("ours", "paper"),
            dict.fromkeys(
                ("less_memory", "more_tokens_per_second", "less_memory_fused", "more_tokens_per_second_fused"), RATIO
            ),
        ),
    },
    "obvious": {
        "settings": {"batch": 32, "tokens": 512, "epoch": {"task": "imdb", "rows": 22500, "max_length": 512}},
        "largest_logit_difference": 1e-6,
        "equal_batches": {"sides": {"ours": SIDE, "obvious": SIDE}, "ratios": {"more_tokens_per_second": RATIO}},
        "epoch": {
            "sides": {"ours": SIDE, "obvious": SIDE},
            "ratios": {"more_real_tokens_per_second": RATIO, "less_memory": RATIO},
        },
    },
    "scaling": {
        "settings": {"batch": 1, "tokens": [4096, 65536]},
        "sides": {"ours/4096": SIDE, "softmax/4096": SIDE, "ours/65536": SIDE},
        "ratios": {"time": RATIO, "memory": RATIO},
    },
    "operators": {
        "settings": {"batch": 32, "tokens": 512},
        "sides": {"library": {"forward/fp32/128": 0.002}, "rolled_linears": {"forward/fp32/128": 0.005}},
        "ratios": {"library": {"forward/fp32/128": RATIO}},
    },
    "parts": {
        "settings": {"batch": 32, "tokens": 512, "width": 128},
        "sides": {"plain": {"noise/fp32": 0.009}, "ours": {"noise/fp32": 0.003}},
        "ratios": {"noise/fp32": RATIO},
    },
    "paper_memory": {"settings": {"batch": 16, "tokens": 4096}, "sides": {"training/fp32": SIDE}},
}


@pytest.mark.parametrize("name", BENCHES)
def test_each_benchmark_has_a_table_with_its_numbers(root, name):
    (root / "results" / f"bench-{name}.json").write_text(json.dumps({**COMMON, **BENCHES[name]}))
    table = make_table(name, root / "results")
    assert table.startswith("|")
    assert "`diffmix bench` on a CPU" in table
    assert {
        "distilbert": "31.2x",
        "obvious": "250 k",
        "scaling": "150 MB",
        "operators": "2 ms",
        "parts": "9 ms",
        "paper_memory": "150 MB",
    }[name] in table


def test_convergence_shows_the_trained_step():
    step = {"median": 0.2, "low": 0.1, "high": 0.3, "accuracy": 0.875}
    result = {**COMMON, "steps": [step] * 6, "trained_steps": 3, "sequences": 512, "task": "ag_news"}
    table = convergence_table(result)
    assert "3 (as trained)" in table
    assert "87.50 %" in table
