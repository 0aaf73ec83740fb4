import pytest

from diffmix.cli.main import one_option_each


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("train digits --set epochs=1 seed=2 --resume", "train digits --set epochs=1 --set seed=2 --resume"),
        ("train digits --set epochs=1 --set seed=2", "train digits --set epochs=1 --set seed=2"),
        ("study s --only a=1 b=x=y --set c.d=3 --jobs 2", "study s --only a=1 --only b=x=y --set c.d=3 --jobs 2"),
        ("train --set epochs=1 digits", "train --set epochs=1 digits"),
        ("train digits --set", "train digits --set"),
        ("predict run a=b", "predict run a=b"),
        ("train digits --set=a=1 b=2", "train digits --set a=1 --set b=2"),
        ("predict run --set x=1 -- a=b", "predict run --set x=1 -- a=b"),
        ("train digits --set epochs a=1", "train digits --set epochs a=1"),
    ],
)
def test_one_option_takes_several_values(given, meant):
    assert one_option_each(given.split()) == meant.split()
