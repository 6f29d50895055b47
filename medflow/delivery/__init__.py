"""Delivery: the outbox's results to a folder or to a FHIR server, each of them once."""

from medflow.delivery.run import DeliveryTally, deliver

__all__ = ["DeliveryTally", "deliver"]
