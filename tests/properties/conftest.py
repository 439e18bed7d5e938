"""How many examples: some in the default run, and with ``-m slow`` many more of the same.

Examples are derived from the tests themselves, so that every run sees the same ones.
"""

from __future__ import annotations

import pathlib
import tempfile

import hypothesis
import pytest
from hypothesis import configuration

HERE = pathlib.Path(__file__).parent
FEW, MANY = 40, 800

_same = hypothesis.settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    print_blob=False,
)
hypothesis.settings.register_profile("few", _same, max_examples=FEW)
hypothesis.settings.register_profile("many", _same, max_examples=MANY)


def pytest_configure(config: pytest.Config) -> None:
    """What hypothesis keeps of the Unicode tables goes to a folder for temporary files."""
    configuration.set_hypothesis_home_dir(
        pathlib.Path(tempfile.gettempdir()) / "stemjax-hypothesis"
    )
    hypothesis.settings.load_profile("many" if config.option.markexpr == "slow" else "few")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long run has every property too, with more examples."""
    if config.option.markexpr == "slow":
        for item in items:
            if HERE in item.path.parents:
                item.add_marker("slow")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder for the files of examples, each of which replaces the one before."""
    return tmp_path_factory.mktemp("examples")
