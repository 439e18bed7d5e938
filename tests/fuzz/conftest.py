"""One process reads the damaged files of all tests of this folder."""

import pytest
from reader import Reader


@pytest.fixture(scope="session")
def reader():
    made = Reader()
    yield made
    made.close()
