import json
from pathlib import Path

import pytest

from diffmix.errors import RequestError, RunError
from diffmix.experiments.cells import folder_name, parse_entry, split_spec
from diffmix.experiments.compare import compare
from diffmix.experiments.tables import comparison_table

RECIPE = "task: text_file\ntokenizer: bytes\nhidden_size: 16\n"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


class Trainer:
    """Stands for `diffmix train`: fills a run's folder, and remembers the commands."""

    def __init__(self, fail_on=None):
        self.commands, self.fail_on = [], fail_on

    def __call__(self, command):
        self.commands.append(list(command))
        folder = Path(command[command.index("--output") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text("task: text_file\n")
        if self.fail_on is not None and any(self.fail_on in word for word in command):
            return 1
        seeds = int(command[command.index("--seeds") + 1]) if "--seeds" in command else 1
        metrics = {
            "test/accuracy": 0.9,
            "test/n": 100.0,
            "train/peak_memory_bytes": 2e8,
            "train/examples": 50,
            "note": "x",
        }
        if seeds > 1:
            metrics |= {"test/accuracy_low": 0.88, "test/accuracy_high": 0.92}
        for place in [folder] if seeds == 1 else [folder, *(folder / f"seed-{seed}" for seed in range(seeds))]:
            place.mkdir(exist_ok=True)
            (place / "metrics.json").write_text(json.dumps(metrics))
            (place / "environment.json").write_text(
                json.dumps({"device": "some CPU", "device_type": "cpu", "threads": 2})
            )
            (place / "metrics.jsonl").write_text(
                '{"step": 1, "validation/loss": 0.5}\n{"step": 2, "validation/loss": 0.4}\n'
            )
        return 0


def test_specs_split_at_the_first_colon_and_at_commas_outside_brackets():
    assert split_spec("ag_news") == ("ag_news", ())
    assert split_spec("ag_news:epochs=2,neighbor_offsets=[-1,0,1],tokenizer=bytes") == (
        "ag_news",
        ("epochs=2", "neighbor_offsets=[-1,0,1]", "tokenizer=bytes"),
    )
    nested = "neighbor_offsets=[[-1,0,1],[-2,0,2]]"
    assert parse_entry(f"lra_image:{nested},num_hidden_layers=2").overrides == (nested, "num_hidden_layers=2")
    with pytest.raises(RequestError, match="colon"):
        split_spec("ag_news:")


@pytest.mark.parametrize(
    "value",
    [
        "[[1, [2, 3]], 4]",
        "{a: {b: 1}, c: [2, 3]}",
        "'x, y'",
        '"x, [y"',
        "[it's, don't]",
        "['a]', b]",
        '["a[", b]',
        "a[b",
        "a]b",
    ],
)
def test_a_value_of_a_spec_goes_on_to_the_bracket_or_quote_that_closes_it(value):
    assert split_spec(f"x:first=1,key={value},last=2") == ("x", ("first=1", f"key={value}", "last=2"))


def test_each_recipe_is_trained_and_the_table_written(tmp_path, recipe):
    trainer = Trainer()
    specs = [recipe, f"{recipe}:mixer=softmax"]
    path, result = compare(
        specs,
        data="/somewhere/data",
        output=tmp_path / "r.json",
        runs=tmp_path / "runs",
        seeds=2,
        notice=lambda _: None,
        run=trainer,
    )
    assert len(trainer.commands) == 2
    assert trainer.commands[1][trainer.commands[1].index("--set") + 1] == "mixer=softmax"
    assert [row["mixer"] for row in result["rows"]] == ["neighbor", "softmax"]
    assert [row["seeds"] for row in result["rows"]] == [2, 2]
    assert len(result["rows"][0]["per_seed"]) == len(result["rows"][0]["history"]) == 2
    assert "note" not in result["rows"][0]["per_seed"][0]
    assert "/somewhere/data" not in path.read_text()
    assert str(tmp_path) not in path.read_text()
    table = comparison_table(json.loads(path.read_text()))
    assert "90.00 (88.00 to 92.00)" in table
    assert "200 MB" in table
    assert "some CPU" in table


def test_a_finished_run_is_not_repeated_and_an_unfinished_one_is_continued(tmp_path, recipe):
    specs = [recipe, f"{recipe}:epochs=2"]
    common = {"output": tmp_path / "r.json", "runs": tmp_path / "runs", "notice": lambda _: None}
    failing = Trainer(fail_on="epochs=2")
    with pytest.raises(RunError, match="epochs=2 ended with exit code 1"):
        compare(specs, **common, run=failing)
    assert not (tmp_path / "r.json").exists()
    trainer = Trainer()
    compare(specs, **common, run=trainer)
    assert len(trainer.commands) == 1
    assert "epochs=2" in trainer.commands[0]
    assert "--resume" in trainer.commands[0]


def test_whatever_changes_the_result_changes_the_folder(recipe):
    names = {
        folder_name(parse_entry(recipe), 1, None),
        folder_name(parse_entry(recipe), 2, None),
        folder_name(parse_entry(recipe), 1, "data"),
        folder_name(parse_entry(f"{recipe}:epochs=9"), 1, None),
    }
    assert len(names) == 4
    before = folder_name(parse_entry(recipe), 1, None)
    Path(recipe).write_text(RECIPE + "num_hidden_layers: 2\n")
    assert folder_name(parse_entry(recipe), 1, None) != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"specs": []}, "no recipe"),
        ({"specs": ["RECIPE", "RECIPE"]}, "twice"),
        ({"specs": ["RECIPE:epoch=2"]}, "epochs"),
        ({"specs": ["RECIPE"], "seeds": 0}, "seeds is 0"),
        ({"specs": ["RECIPE"], "output": "THERE"}, "exists"),
    ],
)
def test_wrong_requests_train_nothing(tmp_path, recipe, change, message):
    there = tmp_path / "there.json"
    there.write_text("{}")
    keys = {"output": tmp_path / "r.json", "runs": tmp_path / "runs", **change}
    keys["output"] = there if keys["output"] == "THERE" else keys["output"]
    specs = [spec.replace("RECIPE", recipe) for spec in keys.pop("specs")]
    trainer = Trainer()
    with pytest.raises(RequestError, match=message):
        compare(specs, **keys, run=trainer)
    assert trainer.commands == []
    assert there.read_text() == "{}"


def test_a_refused_training_is_a_wrong_request(tmp_path, recipe):
    with pytest.raises(RequestError, match="exit code 2"):
        compare([recipe], output=tmp_path / "r.json", runs=tmp_path / "runs", notice=lambda _: None, run=lambda _: 2)
