"""Results as FHIR R4 resources: a pure mapping from a model's checked answers, and nothing else.

One job gives its results and one Provenance; one model gives, once, its Device and its model card. Every id is a
UUIDv5 over what the result is of (model, digest, output, patient, exact input, prediction time), so that the same
result always has the same id, wherever and however often it is computed, and the id says nothing about the patient.
"""

from medflow.fhir.write.catalog import card_markdown, catalog_resources
from medflow.fhir.write.elements import ModelIdentity
from medflow.fhir.write.observations import ResultContext
from medflow.fhir.write.results import resources_of_many, result_resources

__all__ = [
    "ModelIdentity",
    "ResultContext",
    "card_markdown",
    "catalog_resources",
    "resources_of_many",
    "result_resources",
]
