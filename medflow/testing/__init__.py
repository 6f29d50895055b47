"""The conformance kit: whether a model keeps the plugin contract, for authors and for `medflow plugin check`."""

from medflow.testing.cases import sample_cases
from medflow.testing.conformance import Check, check_model

__all__ = ["Check", "check_model", "sample_cases"]
