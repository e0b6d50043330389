import pytest

from tests.e2e.loop import few_scans, place
from tests.medloop.by_hand import ByHand

__all__ = ["few_scans", "place"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ByHand:
    """A home whose store holds a finished run; those who look at it leave the store as it is."""
    made = ByHand(tmp_path_factory.mktemp("finished"))
    made.whole()
    return made
