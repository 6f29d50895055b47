"""A model as FHIR: the Device that its results name as their maker, and its model card."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha1

from medflow.errors import InputRejected, PluginBroken
from medflow.fhir.write.elements import Json, ModelIdentity, outgoing
from medflow.records import Outgoing

MODEL_DIGEST = "urn:medflow:model-digest"


def catalog_resources(model: ModelIdentity) -> list[Outgoing]:
    """A model's Device and its model card, which its results refer to: sent once, before them.

    Raises
    ------
    PluginBroken
        The spec's texts do not make valid FHIR.
    """
    try:
        return [outgoing(resource, "catalog") for resource in (_device(model), _card(model))]
    except InputRejected as error:
        raise PluginBroken(f"the spec of {model.name} does not make valid FHIR: {error.message}") from None


def _device(model: ModelIdentity) -> Json:
    return {
        "resourceType": "Device",
        "id": model.device_id,
        "identifier": [{"system": MODEL_DIGEST, "value": model.digest}],
        "status": "active",
        "manufacturer": model.distribution,
        "deviceName": [
            {"name": model.spec.title, "type": "user-friendly-name"},
            {"name": model.name, "type": "model-name"},
        ],
        "modelNumber": model.name,
        "type": {"text": "AI model"},
        "version": [{"value": model.version}],
    }


def _card(model: ModelIdentity) -> Json:
    text = card_markdown(model).encode()
    attachment = {
        "contentType": "text/markdown; charset=utf-8",
        "language": "en",
        "data": b64encode(text).decode(),
        "size": len(text),
        "hash": b64encode(sha1(text, usedforsecurity=False).digest()).decode(),  # R4 Attachment.hash is SHA-1
        "title": f"Model card of {model.name} {model.version}",
    }
    return {
        "resourceType": "DocumentReference",
        "id": model.card_id,
        "identifier": [{"system": MODEL_DIGEST, "value": model.digest}],
        "status": "current",
        "type": {"text": "Model card"},
        "subject": model.device,
        "description": f"Model card of {model.spec.title}",
        "content": [{"attachment": attachment}],
    }


def card_markdown(model: ModelIdentity) -> str:
    """The model card as a reader of a score sees it."""
    card = model.spec.card
    metrics = "\n".join(f"- {name}: {value}" for name, value in card.metrics.items())
    sections = {
        "Intended use": card.intended_use,
        "Training data": card.training_data,
        "Metrics": metrics,
        "Limits": card.limits,
        "Licence": card.licence,
    }
    head = f"# {model.spec.title}\n\n{model.name} {model.version}, from {model.distribution}\n"
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items() if text)
