import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, BertConfig

from diffmix.errors import RequestError
from diffmix.models import DiffmixConfig, DiffmixForSequenceClassification
from diffmix.tasks.long_range_arena.curriculum import EASIER, EASIER_IMAGES
from diffmix.tasks.long_range_arena.generated import GENERATED
from diffmix.training.recipe import Recipe, load_recipe, model_key_defaults, recipe_from_mapping, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_their_resolved_form_reads_back(name, tmp_path):
    recipe = load_recipe(name)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(file) == recipe


def test_the_contracts_recipes_are_shipped():
    expected = [
        "text_file",
        "ag_news",
        "ag_news_paper",
        "imdb",
        "imdb_paper",
        "sst2",
        "20newsgroups",
        "digits",
        "language_id",
    ]
    assert set(expected) <= set(shipped_recipes())


def test_the_papers_recipes_have_the_papers_architecture():
    for name in ("ag_news_paper", "imdb_paper"):
        config = load_recipe(name).config
        assert config["neighbor_offsets"] == [-1, 0, 1]
        assert config["neighbor_shared_steps"] is True
        assert (config["hidden_size"], config["num_hidden_layers"], config["neighbor_alpha"]) == (256, 4, 0.5)


@pytest.mark.parametrize(
    "name", ["imdb_diffuser", "20newsgroups_diffuser", "hyperpartisan_diffuser", "digits_pixels", "mnist_pixels"]
)
def test_the_third_papers_recipes_diffuse_as_it_does_and_name_a_sparse_baseline(name):
    config = load_recipe(name).config
    assert (config["mixer"], config["diffusion_hops"], config["diffusion_alpha"]) == ("attention_diffusion", 5, 0.1)
    assert config["diffusion_global_tokens"] >= 1
    baseline = load_recipe(name, ["diffusion_hops=1", "diffusion_alpha=0"])
    assert DiffmixConfig(**baseline.config).diffusion_weights() == (0.0, 1.0)


def test_the_third_papers_shape_is_at_hand():
    config = load_recipe("imdb_diffuser_paper").config
    shape = (
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
        config["diffusion_hops"],
    )
    assert shape == (12, 768, 12, 5)
    degree = DiffmixConfig(**config).diffusion_pattern().statistics(4096)
    assert 240 < degree["mean_degree"] < 260  # a window of 65, 64 global and as many that hear all, 64 random links


def test_easier_sets_stand_in_recipes_that_take_them():
    recipes = [load_recipe(name) for name in shipped_recipes()]
    taking = {recipe.task: recipe.extra_train for recipe in recipes if recipe.extra_train}
    assert set(taking) == {"listops", "listops_short", "pathfinder", "pathfinder_x"}
    for task, names in taking.items():
        if task.startswith("listops"):
            assert all(EASIER[name].max_length < GENERATED[task].content.min_length for name in names)
        else:
            assert set(names) <= set(EASIER_IMAGES)


def test_listops_goes_on_from_the_steps_of_listops_short(tmp_path):
    short, long = load_recipe("listops_short").config, load_recipe("listops").config
    steps = short["num_hidden_layers"]
    assert long["neighbor_offsets"][:steps] == short["neighbor_offsets"]
    small = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 16, "num_labels": 10}
    before = DiffmixForSequenceClassification(DiffmixConfig(**short | small))
    before.save_pretrained(tmp_path)
    after = DiffmixForSequenceClassification.from_pretrained(tmp_path, config=DiffmixConfig(**long | small))
    assert len(after.model.layers) == long["num_hidden_layers"] > steps
    kept, weights = after.state_dict(), before.state_dict()
    assert all(torch.equal(kept[name], weights[name]) for name in weights)


def test_overrides_are_typed_and_reach_training_and_model_keys():
    recipe = load_recipe(
        "ag_news",
        ["epochs=3", "learning_rate=5e-5", "extra_train=descriptions", "neighbor_alpha=7e-1", "mixer=softmax"],
    )
    assert recipe.epochs == 3.0
    assert recipe.learning_rate == 5e-5  # YAML alone would read text
    assert recipe.extra_train == ("descriptions",)
    assert recipe.config["neighbor_alpha"] == 0.7
    assert recipe.config["mixer"] == "softmax"


def test_auto_batch_size_keeps_a_fixed_effective_batch():
    recipe = load_recipe("ag_news", ["batch_size=auto"])
    assert recipe.batch_size == 32
    assert recipe.micro_batch_size is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("hiden_size=3", "'hidden_size'"),
        ("learning_rte=3", "'learning_rate'"),
        ("epochs=many", "a number"),
        ("epochs=0", "more than 0"),
        ("epochs=.nan", "a number"),
        ("adam_beta2=1", "0.99999 or less"),
        ("tfidf_c=[1, 0]", "more than 0"),
        ("report_to=[trackio, foo]", "'foo'; it accepts azure_ml"),
        ("batch_size=3.5", "a whole number"),
        ("batch_size=0", "1 or more"),
        ("label_smoothing=2", "0.99 or less"),
        ("schedule=square", "linear, cosine, constant"),
        ("gradient_checkpointing=3", "true or false"),
        ("hidden_size=wide", "a whole number"),
        ("mixer=magic", "'neighbor'"),
        ("neighbor_alpha=3", "between 0 and 1"),
        ("vocab_size=10", "tokenizer"),
        ("model=distilbertt", "'distilbert'"),
        ("pretraining=3", "mapping"),
        ("pretraining.epocs=3", "'epochs'"),
        ("pretraining.mask_probability=0", "more than 0"),
        ("epochs", "key=value"),
        ("extra_train=[", "YAML"),
        ("text_column='a", "YAML"),
        ("epochs=2024-13-41", "YAML"),
        (f"seed={'9' * 5000}", "YAML"),
        (f"seed=0x{'f' * 5000}", "a whole number"),
        (f"limit={'9' * 400}", "a whole number"),
        ("pretraining={epochs: 1, epochs: 2}", "YAML"),
        ("pretraining={1: 2}", "mapping"),
        ("self_training={null: 2}", "mapping"),
        ("max_length=1e300", "or less"),
        ("hidden_size=null", "hidden_size"),
        ("num_hidden_layers=[3]", "num_hidden_layers"),
        ("hidden_dropout=[0.1]", "hidden_dropout"),
        ("mixer=null", "mixer"),
    ],
)
def test_wrong_overrides_name_the_mend_on_one_line(override, expected):
    with pytest.raises(RequestError) as caught:
        load_recipe("imdb", [override])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["01", "010", "12:30", "yes", "2024-01-01", "2024-13-41", "a: b", "[x]", "1e3"])
def test_overrides_of_text_are_taken_as_they_stand(text):
    assert load_recipe("text_file", [f"text_column={text}"]).text_column == text
    assert load_recipe("text_file", [f"text_column='{text}'"]).text_column == text


def test_overrides_of_text_may_be_nothing():
    for nothing in ("", "null", "~"):
        assert load_recipe("text_file", ["text_column=a", f"text_column={nothing}"]).text_column is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "no keys"),
        ("epochs: 1\nseed: 2\nepochs: 3\n", "line 3: 'epochs' stands there twice"),
        ("text_column: 2024-13-41\n", "month must be in 1"),
        ("epochs: !!timestamp x\n", "one 'key: value' per line"),
        ("epochs: " + "[" * 5000, "one 'key: value' per line"),
        ("- a\n- b\n", "no keys"),
        ("task: [1,\n", "line"),
        ("extends: nothing_like_it\n", "not found"),
    ],
)
def test_files_that_are_no_recipes(content, expected, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(RequestError, match=expected):
        load_recipe(file)


def test_files_that_extend_each_other_are_refused(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"extends: {second}\n")
    second.write_text(f"extends: {first}\n")
    with pytest.raises(RequestError, match="extends itself"):
        load_recipe(first)


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("diffusion_global_tokens=[0, 3]", [0, 3]),
        ("diffusion_coefficients=[0, 0, 0, 0, 0.5, 0.5]", [0, 0, 0, 0, 0.5, 0.5]),
        ("num_key_value_heads=null", None),
        ("intermediate_size=null", None),
    ],
)
def test_model_keys_take_lists_and_nothing_where_the_model_does(override, kept):
    recipe = load_recipe("imdb_diffuser", [override])
    assert recipe.config[override.partition("=")[0]] == kept
    assert recipe_from_mapping(recipe.to_dict(), name=recipe.name) == recipe


def test_a_file_that_is_not_utf_8(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"task: \xff\xfe\n")
    with pytest.raises(RequestError, match="UTF-8"):
        load_recipe(file)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(RequestError, match="did you mean 'ag_news'"):
        load_recipe("ag_new")


def test_a_file_extends_a_shipped_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: ag_news\nepochs: 1\nhidden_size: 64\n")
    recipe = load_recipe(file)
    assert recipe.name == "mine"
    assert (recipe.task, recipe.epochs, recipe.config["hidden_size"]) == ("ag_news", 1, 64)


def test_another_model_leaves_the_first_ones_keys_behind():
    recipe = load_recipe("ag_news", ["model=distilbert", "n_layers=2"])
    assert recipe.config == {"n_layers": 2}
    assert recipe.max_length == load_recipe("ag_news").max_length
    assert load_recipe("imdb", ["model=tfidf"]).pretraining is None


def test_pretraining_takes_its_own_keys_and_inherits_the_rest():
    recipe = load_recipe("imdb", ["pretraining.epochs=7", "seed=5"])
    phase = recipe.pretraining_recipe()
    assert phase is not None
    assert phase.epochs == 7
    assert phase.seed == 0  # shared by all seeds
    assert phase.pretraining is None
    assert phase.config["hidden_size"] == recipe.config["hidden_size"]
    assert load_recipe("imdb", ["pretraining=null"]).pretraining_recipe() is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["pretraining.hidden_size=32"],
            "pretraining has hidden_size=32 and the run, which starts from it, hidden_size=",
        ),
        (["pretraining.tokenizer=bytes"], "pretraining has tokenizer='bytes' and the run"),
        (["pretraining.class_token=true"], "class_token=True"),
        (
            ["num_hidden_layers=2", "pretraining.num_hidden_layers=3", "neighbor_shared_steps=false"],
            "num_hidden_layers=3",
        ),
        (["self_training.hidden_size=32"], "the teacher, which starts from it, hidden_size=32"),
        (
            ["pretraining.neighbor_offsets=[-2, -1, 0, 1, 2]"],
            "pretraining has neighbor_offsets=[-2, -1, 0, 1, 2] and the run",
        ),
    ],
)
def test_pretraining_that_nothing_could_start_from_is_refused(overrides, expected):
    with pytest.raises(RequestError) as caught:
        load_recipe("imdb", overrides)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pretraining_may_have_fewer_layers_and_other_dropout():
    fewer = ["num_hidden_layers=3", "pretraining.num_hidden_layers=2", "pretraining.hidden_dropout=0.3"]
    phase = load_recipe("imdb", fewer).pretraining_recipe()
    assert phase is not None
    assert (phase.config["num_hidden_layers"], phase.config["hidden_dropout"]) == (2, 0.3)


@pytest.mark.parametrize(
    "overrides",
    [
        ["mixer=heat_kernel", "pretraining.mixer=softmax", "self_training=null"],
        ["mixer=softmax", "pretraining.neighbor_heads=2", "self_training=null"],
        ["pretraining.embedding_buckets=1000"],
    ],
)
def test_pretraining_whose_weights_fit_may_differ_in_other_keys(overrides):
    assert load_recipe("imdb", overrides).pretraining_recipe() is not None


def test_a_recipe_may_merge_a_mapping_into_another(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "extends: imdb\npretraining: &phase {epochs: 7}\nself_training: {<<: *phase, learning_rate: 0.002}\n"
    )
    recipe = load_recipe(str(file))
    assert recipe.self_training == {"epochs": 7, "learning_rate": 0.002}


@pytest.mark.parametrize("model", ["nonsense", ""])
def test_an_unknown_model_is_refused_without_keys_of_its_own_too(model):
    with pytest.raises(RequestError, match=f"^model='{model}' is unknown: diffmix, tfidf or a Hugging Face model type"):
        load_recipe("digits", [f"model={model}"])


class _WithoutDefaults(BertConfig):
    model_type = "without_defaults"

    def __init__(self, **keys):
        raise ValueError("give a kind")


class _VaryingLayers(BertConfig):
    model_type = "varying_layers"
    attribute_map = {"wide": "width"}  # noqa: RUF012 (as transformers has it)

    @property
    def width(self):
        raise RuntimeError("width may vary across layers")


@pytest.fixture
def families():
    for kind in (_WithoutDefaults, _VaryingLayers):
        CONFIG_MAPPING.register(kind.model_type, kind, exist_ok=True)


@pytest.mark.usefixtures("families")
def test_a_family_without_working_defaults_is_refused():
    with pytest.raises(
        RequestError, match=r"model=without_defaults cannot be made from keys \(give a kind\): set another"
    ):
        load_recipe("digits", ["model=without_defaults", "num_hidden_layers=1"])


@pytest.mark.usefixtures("families")
def test_a_key_that_differs_from_layer_to_layer_is_left_out():
    assert "wide" not in model_key_defaults("varying_layers")
    assert load_recipe("digits", ["model=varying_layers", "num_hidden_layers=1"]).config["num_hidden_layers"] == 1


@pytest.mark.parametrize(
    ("phase", "key", "value"),
    [
        ("pretraining", "validation_fraction", "0.01"),
        ("pretraining", "init_from", "somewhere"),
        ("pretraining", "pretraining", "{epochs: 1}"),
        ("pretraining", "self_training", "{epochs: 1}"),
        ("pretraining", "label_column", "other"),
        ("self_training", "stream", "true"),
        ("self_training", "validation_fraction", "0.01"),
        ("self_training", "task", "sst2"),
        ("self_training", "pretraining", "{epochs: 1}"),
        ("self_training", "self_training", "{epochs: 1}"),
    ],
)
def test_a_phase_does_not_take_what_only_the_run_has(phase, key, value):
    with pytest.raises(RequestError, match=rf"^recipe key '{phase}\.{key}' cannot be set.*: leave it out$"):
        load_recipe("imdb", [f"{phase}.{key}={value}"])


def test_phases_share_the_runs_cut_of_validation():
    recipe = load_recipe("imdb", ["validation_fraction=0.2", "pretraining.task=sst2"])
    phase, teacher = recipe.pretraining_recipe(), recipe.teacher_recipe()
    assert phase is not None
    assert teacher is not None
    assert phase.validation_fraction == teacher.validation_fraction == 0.2
    assert phase.task == "sst2"  # what is read without labels may be another task's


def test_pretraining_and_init_from_exclude_each_other():
    with pytest.raises(RequestError, match="drop the other"):
        load_recipe("imdb", ["init_from=somewhere"])


@given(
    st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(Recipe)]), st.text() | st.integers())
)
def test_any_values_give_a_recipe_or_one_line(mapping):
    mapping.pop("config", None)
    mapping.pop("model", None)
    try:
        recipe = recipe_from_mapping(mapping, name="any")
    except RequestError as error:
        message = str(error)
        recipe = None
    if recipe is None:
        assert len(message.splitlines()) == 1
    else:
        assert recipe_from_mapping(recipe.to_dict(), name="any") == recipe
