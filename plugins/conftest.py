"""What the plugins' tests share with medflow's own: the published data sets."""

from tests.conftest import realdata

__all__ = ["realdata"]
