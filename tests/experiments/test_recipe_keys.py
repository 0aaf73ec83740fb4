import dataclasses

from diffmix.experiments.recipe_keys import recipe_keys_table
from diffmix.training.recipe import Recipe


def rows():
    """Key → its heading and the cells beside it."""
    found, heading = {}, ""
    for line in recipe_keys_table().splitlines():
        if line.startswith("### "):
            heading = line.removeprefix("### ")
        elif line.startswith("| `"):
            key, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            assert key not in found
            found[key.strip("`")] = (heading, *cells)
    return found


def test_every_key_of_the_training_has_one_row_with_its_default():
    found = rows()
    assert set(found) == {field.name for field in dataclasses.fields(Recipe)} - {"name", "config"}
    assert found["max_length"][:3] == ("Data", "`512`", "a whole number")
    assert found["schedule"][:3] == ("Optimisation", "`linear`", "`linear`, `cosine`, `constant`")
    assert found["stream"][1:3] == ("`null`", "true or false, or null")
    assert found["extra_train"][1:3] == ("`[]`", "a list: text each")


def test_meanings_are_the_comments_of_the_source():
    found = rows()
    assert found["model"][3].startswith("diffmix, tfidf, or any")  # beside the field
    assert found["temperature_scaling"][3].startswith("of a language model")  # a field of several lines
    assert found["embedding_init"][3].startswith("ppmi: from which tokens")  # above the field, below a heading
    assert found["embedding_init"][0] == "Where the weights start"
    assert found["pretraining"][3] == "keys of the masked-token phase; null: none"
    assert found["epochs"][3] == "passes over train"
    assert all(row[3] for row in found.values())
