"""Delivery: the outbox's results to a folder or to a FHIR server, each of them once."""

from medflow.delivery.run import DeliveryTally, deliver
from medflow.delivery.target import target_name

__all__ = ["DeliveryTally", "deliver", "target_name"]
