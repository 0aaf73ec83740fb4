import pytest
import yaml

from diffmix.errors import RequestError
from diffmix.experiments.study_file import as_text, load_study, select_cells, shipped_studies
from diffmix.training.recipe import shipped_recipes

GOOD = {
    "recipe": "digits",
    "set": {"epochs": 1, "learning_rate": 1e-5},
    "grid": {
        "attention": {
            "near": None,
            "softmax": {"mixer": "softmax"},
            "heat": {"mixer": "heat_kernel", "heat_time_mode": "learned", "heat_time_bounds": [0.05, 5.0]},
        },
        "num_hidden_layers": [1, 2],
        "seed": [0, 1, 2],
    },
    "compare": {"axis": "attention", "baseline": "softmax"},
    "metrics": ["test/accuracy", "test/nll"],
}


@pytest.fixture
def written(tmp_path):
    def write(content, name="some.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def test_every_combination_is_a_cell_with_its_recipe(written):
    study = load_study(written(GOOD), ["batch_size=8"])
    assert study.name == "some"
    assert len(study.cells) == 18
    assert len({cell.label for cell in study.cells}) == 18
    last = study.cells[-1]
    assert last.label == "attention=heat, num_hidden_layers=2, seed=2"
    assert (last.recipe.seed, last.recipe.batch_size, last.recipe.epochs) == (2, 8, 1.0)
    assert last.recipe.learning_rate == 1e-5  # which YAML reads as text unless written with care
    assert last.recipe.config["heat_time_bounds"] == [0.05, 5.0]
    assert last.recipe.config["num_hidden_layers"] == 2
    assert "mixer" not in study.cells[0].recipe.config
    assert study.compared == ("attention", "softmax")


def test_an_axis_may_choose_the_recipe(written):
    written("task: text_file\nmodel: tfidf\n", "mine.yaml")
    tasks = {
        "pixels": {"recipe": "digits", "epochs": 2},
        "names": {"recipe": "language_id"},
        "mine": {"recipe": "mine.yaml"},
    }
    study = load_study(written({"grid": {"task": tasks, "seed": [0]}, "metrics": ["test/accuracy"]}))
    assert [cell.recipe.task for cell in study.cells] == ["digits", "language_id", "text_file"]
    by_name = load_study(written({"grid": {"recipe": ["digits", "language_id"]}, "metrics": ["test/accuracy"]}))
    assert [cell.label for cell in by_name.cells] == ["recipe=digits", "recipe=language_id"]
    assert by_name.compared is None


@pytest.mark.parametrize("value", [1, -0.5, 1e-7, True, None, "softmax", "a: b", "", "null", [-1, 0, 1], {"a": [1]}])
def test_a_value_as_text_is_read_back(value):
    assert yaml.safe_load(as_text(value)) == value
    assert "\n" not in as_text(value)


def test_choices_select_cells(written):
    study = load_study(written(GOOD))
    chosen = select_cells(study, ["seed=0", "attention=heat", "seed = 2"])
    assert [cell.label for cell in chosen] == [
        f"attention=heat, num_hidden_layers={layers}, seed={seed}" for layers in (1, 2) for seed in (0, 2)
    ]
    assert select_cells(study, []) == list(study.cells)
    for choice, said in [
        ("seed", "axis=value"),
        ("sed=0", "did you mean 'seed'"),
        ("seed=7", "give one of 0, 1, 2"),
        ("attention=sofmax", "did you mean 'softmax'"),
    ]:
        with pytest.raises(RequestError, match=said):
            select_cells(study, [choice])


def changed(**changes):
    content = {**GOOD, **changes}
    return {key: value for key, value in content.items() if value != "DROP"}


BAD = [
    ("", "holds no keys"),
    ("- 1", "holds no keys"),
    ("recipe: [", "line 1"),
    ("grid:\n  seed: [0]\n  seed: [1]\n", "line 3: 'seed' stands there twice"),
    ("grid:\n  seed: [2024-13-41]\n", "month must be in 1"),
    (changed(gird=1), "'gird'; did you mean 'grid'"),
    (changed(grid="DROP"), "grid is None"),
    (changed(grid=[1]), "grid is [1]"),
    (changed(grid={}), "give axes"),
    (changed(grid={"seed": []}), "axis seed is []"),
    (changed(grid={"seed": 3}), "axis seed is 3"),
    (changed(grid={"seed": {"a": {"seed": 1}}}), "list of whole numbers"),
    (changed(grid={"seed": [0, 0]}), "a value twice"),
    (changed(grid={"seed": [0.5]}), "cell seed=0.5: recipe key 'seed'"),
    (changed(grid={"hiden_size": [4]}, compare=None), "cell hiden_size=4: unknown recipe key 'hiden_size'"),
    (changed(grid={"hidden_size": [4, "wide"]}), "cell hidden_size=wide: recipe key 'hidden_size' is 'wide'"),
    (changed(grid={"attention": {"a": "softmax"}}), "attention=a is 'softmax'; give recipe keys"),
    (changed(grid={"attention": {"a": {"mixr": "softmax"}}}), "did you mean 'mixer'"),
    (changed(grid={"attention": {"a": {"epochs": 2}}, "epochs": [1]}), "axes attention and epochs both set 'epochs'"),
    (changed(grid={"attention": {"a": None, "b": {}}}), "'attention=a' and 'attention=b' are the same recipe"),
    (changed(recipe="digit"), "did you mean 'digits'"),
    (changed(recipe="DROP"), "recipe is missing"),
    (changed(recipe=3), "recipe is 3"),
    (changed(set=[1]), "set is [1]"),
    (changed(set={"epochs": 0}), "epochs"),
    (changed(name="../up"), "it names a folder"),
    (changed(compare="attention"), "give {axis: AXIS, baseline"),
    (changed(compare={"axis": "atention", "baseline": "softmax"}), "did you mean 'attention'"),
    (changed(compare={"axis": "seed", "baseline": 0}), "give one of attention, num_hidden_layers"),
    (changed(compare={"axis": "attention", "baseline": "sofmax"}), "did you mean 'softmax'"),
    (changed(compare={"axis": "num_hidden_layers", "baseline": 3}), "give one of 1, 2"),
    (changed(metrics="DROP"), "metrics is None"),
    (changed(metrics=["tset/accuracy"]), "did you mean 'test'"),
    (changed(metrics=["test/nll", "test/nll"]), "twice"),
]


@pytest.mark.parametrize(("content", "said"), BAD, ids=[said for _, said in BAD])
def test_what_is_wrong_is_named_on_one_line_with_its_place(written, content, said):
    path = written(content)
    with pytest.raises(RequestError) as caught:
        load_study(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_studies_and_files_that_are_no_text(tmp_path):
    with pytest.raises(RequestError, match="'no_such' not found"):
        load_study("no_such")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="UTF-8"):
        load_study(tmp_path / "binary.yaml")


def test_what_an_axis_sets_is_not_set_for_all(written):
    path = written(GOOD)
    for override in ("seed=3", "mixer=softmax"):
        with pytest.raises(RequestError, match="--only"):
            load_study(path, [override])
    with pytest.raises(RequestError, match="epochs"):
        load_study(path, ["epochs=many"])


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_are_right(name):
    study = load_study(name)
    assert study.name == name
    assert {cell.recipe.name for cell in study.cells} <= set(shipped_recipes())
    assert len(study.axes["seed"]) >= 3
    assert study.compared is not None
