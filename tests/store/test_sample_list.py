"""The samples as they are listed, on both databases."""

from __future__ import annotations

from dataclasses import replace

from medflow.records import FhirResource, Identifier, VariantFile
from medflow.store import Store
from medflow.store.clinical import ClinicalWriter
from medflow.store.genomics import store_variant_file
from medflow.store.packed import pack
from medflow.store.sample_list import count_samples, sample_pages
from medflow.store.specimens import named

NAMES = ("by-order", "by-both", "by-sheet", "nobodys")
FILE = VariantFile(sha256="a" * 64, size=1, version="VCFv4.2", samples=NAMES, records=3, build="GRCh38")


def call(store: Store, type: str, id: str, *names: str, subject: str = "p1") -> None:
    """A resource in the store that has these names."""
    called = tuple(Identifier(system="", value=name) for name in names)
    found = FhirResource(source="local", type=type, id=id, raw=b"{}", sha256=id * 64, subject=subject, names=called)
    with store.writing() as connection:
        ClinicalWriter("local").write(connection, [pack(found)])


def test_samples_say_what_gives_them_to_their_patients(store: Store) -> None:
    call(store, "ServiceRequest", "1", "by-order", "by-both")
    call(store, "Specimen", "2", "by-both")
    call(store, "Specimen", "3", "by-sheet", subject="p2")
    with store.writing() as connection:
        p1 = named(connection, ["by-order"])["by-order"][0].patient_id
        store_variant_file(connection, FILE, [p1, p1, p1, None])
        store_variant_file(
            connection, replace(FILE, sha256="b" * 64, samples=("made-of",)), [p1], [("Specimen/9", "local")]
        )

    with store.reading() as connection:
        (page,) = sample_pages(connection, size=10)

    assert [(item.sample.id, item.file_id, item.linked) for item in page] == [
        (5, 2, "Specimen"),
        (4, 1, None),
        (3, 1, "sheet or name"),
        (2, 1, "Specimen"),
        (1, 1, "ServiceRequest"),
    ]


def test_they_come_page_by_page_the_last_stored_first_and_of_one_file_alone(store: Store) -> None:
    with store.writing() as connection:
        for digest in "ab":
            store_variant_file(connection, replace(FILE, sha256=digest * 64), [None] * 4)

    with store.reading() as connection:
        pages = [[item.sample.id for item in page] for page in sample_pages(connection, size=3)]
        alone = [item.sample.id for page in sample_pages(connection, size=3, file_id=1) for item in page]
        counted = count_samples(connection), count_samples(connection, 1), count_samples(connection, 9)

    assert pages == [[8, 7, 6], [5, 4, 3], [2, 1]]
    assert (alone, counted) == ([4, 3, 2, 1], (8, 4, 0))
