"""The one line that refuses what cannot be loaded."""

import pytest

from diffmix.errors import RequestError
from diffmix.tasks import load_task


def refusal(name, **arguments):
    """The line with which a task is refused."""
    with pytest.raises(RequestError) as caught:
        load_task(name, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
