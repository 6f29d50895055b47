"""A result that was filed under the wrong patient is entered in error when the right one is known."""

import orjson
import pytest
from sqlalchemy import select

from medflow import steps
from medflow.config import Settings
from medflow.records import FhirResource, Sequence, digest_of
from medflow.registry import Registry
from medflow.store import Store
from medflow.store.clinical import ClinicalWriter
from medflow.store.packed import pack
from medflow.store.tables import OutboxRow
from tests.models import GcContent, registered


@pytest.fixture
def site(local: Store, settings: Settings) -> steps.Site:
    registry = Registry(models={"gc-content": registered(GcContent)}, broken=())
    return steps.Site(settings=settings, store=local, registry=registry)


def sequence(site: steps.Site, subject: str | None) -> None:
    """One MolecularSequence, of whom it is said to be now; then it is scored."""
    bases = Sequence(name="MolecularSequence/s1", bases="ACGTACGT", sha256=digest_of("ACGTACGT"))
    resource = FhirResource(
        source=site.settings.source,
        type="MolecularSequence",
        id="s1",
        raw=str(subject).encode(),
        sha256=digest_of(str(subject)),
        subject=subject,
        sequence=bases,
    )
    with site.store.writing() as connection:
        ClinicalWriter(site.settings.source).write(connection, [pack(resource)])
    assert steps.score(site).done == 1


def statuses(site: steps.Site) -> dict[str | None, str]:
    with site.store.reading() as connection:
        bodies = connection.scalars(select(OutboxRow.body).where(OutboxRow.type == "Observation"))
        found = [orjson.loads(body) for body in bodies]
    return {item.get("subject", {}).get("reference"): item["status"] for item in found}


def test_given_to_another_patient_the_first_result_was_an_error(site: steps.Site) -> None:
    sequence(site, "p1")
    sequence(site, "p2")

    assert statuses(site) == {"Patient/p1": "entered-in-error", "Patient/p2": "preliminary"}


def test_what_was_nobodys_is_amended_when_it_turns_out_to_be_somebodys(site: steps.Site) -> None:
    sequence(site, None)
    sequence(site, "p1")

    assert statuses(site) == {None: "amended", "Patient/p1": "preliminary"}
