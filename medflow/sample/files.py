"""Writes the whole sample in one go, the same bytes for the same seed: what `medflow demo` and the tests feed on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import orjson

from medflow.sample import cohort, genome, imaging
from medflow.sample.odd import odd_lines
from medflow.sample.phantom import draw_anatomy, grid_affine, render

ISSUER_SYSTEMS: Mapping[str, str] = {imaging.ISSUER: cohort.MRN_SYSTEM}
_CT_SHAPE, _CT_SPACING_MM = (40, 64, 64), (6.0, 5.5, 5.5)
_BUNDLED_STAYS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleData:
    """Where the sample lies. All but ``reference`` (the FASTA that ``vcf`` refers to) are folders to be ingested.

    ``issuer_systems`` is what `Settings.issuer_systems` must be for pictures and records of one person to meet.
    ``nights`` are two in a row on which many of the stays had begun and not ended.
    ``truth_ml`` holds, for each CT series by SeriesInstanceUID, its organs' true volumes in mL.
    """

    root: Path
    dicom: Path
    fhir: Path
    vcf: Path
    fasta: Path
    reference: Path
    stays: tuple[cohort.Stay, ...]
    truth_ml: Mapping[str, Mapping[str, float]]
    nights: tuple[datetime, ...] = cohort.NIGHTS
    issuer_systems: Mapping[str, str] = field(default_factory=lambda: dict(ISSUER_SYSTEMS))


def write_sample(folder: Path, *, seed: int = 2026, stays: int = 24, odd: bool = True) -> SampleData:
    """Write the sample into ``folder``, which is made if need be; the same ``seed`` gives the same bytes.

    ``stays`` is the size of the cohort, three of whom also have pictures. ``odd`` says whether input that must be
    refused is among it.

    Raises
    ------
    ValueError
        Fewer than 4 stays.
    """
    if stays < 4:
        raise ValueError("the sample needs at least 4 stays")
    drawn = tuple(cohort.draw_stays(np.random.default_rng([seed, 0]), stays))
    truth = _write_dicom(folder / "dicom", np.random.default_rng([seed, 1]), seed, drawn)
    _write_fhir(folder / "fhir", np.random.default_rng([seed, 2]), drawn, odd)
    _write_genome(folder, np.random.default_rng([seed, 3]), odd)
    return SampleData(
        root=folder,
        dicom=folder / "dicom",
        fhir=folder / "fhir",
        vcf=folder / "vcf",
        fasta=folder / "fasta",
        reference=folder / "reference" / "demo.fasta",
        stays=drawn,
        truth_ml=truth,
    )


def pydicom_files() -> list[Path]:
    """The real files inside pydicom's wheel, the odd and broken ones included; nothing is downloaded."""
    spec = find_spec("pydicom.data")
    if spec is None or spec.origin is None:
        return []
    root = Path(spec.origin).parent
    folders = ("test_files", "charset_files")
    return sorted(path for name in folders for path in (root / name).rglob("*") if path.is_file())


def _write_dicom(
    folder: Path, rng: np.random.Generator, seed: int, stays: tuple[cohort.Stay, ...]
) -> dict[str, dict[str, float]]:
    """Two CT series, one straight and one tilted and stacked from the head, and radiographs of three people."""
    truth = {}
    for index, (tilt, head_first) in enumerate(((0.0, True), (8.0, False))):
        study = _study(f"{seed}/ct-{index}", stays[index], "CT abdomen", index + 1)
        anatomy = draw_anatomy(rng)
        affine = grid_affine(_CT_SHAPE, _CT_SPACING_MM, tilt_deg=tilt, head_first=head_first)
        hu, _ = render(anatomy, rng, _CT_SHAPE, affine)
        imaging.write_ct(folder / f"ct-{index + 1}", study, hu, affine)
        truth[imaging.uid(f"{study.key}/ct")] = anatomy.truth_ml
    clear, cloudy = imaging.chest(rng), imaging.chest(rng, opacity=1.0)
    for index, (picture, modality, inverted) in enumerate(
        ((clear, "DX", False), (cloudy, "DX", False), (cloudy, "CR", True))  # the last two are the same picture
    ):
        study = _study(f"{seed}/chest-{index}", stays[1 + index], "Chest radiograph", 10 + index)
        path = folder / "chest" / f"{modality.lower()}-{index + 1}.dcm"
        imaging.write_radiograph(path, study, picture, modality=modality, inverted=inverted)
    return truth


def _study(key: str, stay: cohort.Stay, description: str, number: int) -> imaging.Study:
    taken = stay.admitted + timedelta(hours=2, minutes=number)
    return imaging.Study(key=key, person=stay.person, taken=taken, description=description, number=number)


def _write_fhir(folder: Path, rng: np.random.Generator, stays: tuple[cohort.Stay, ...], odd: bool) -> None:
    """NDJSON, one file a type, of all stays but the last two; those come as one transaction Bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    observed = {stay.number: list(cohort.observations(rng, stay)) for stay in stays}
    listed, bundled = stays[:-_BUNDLED_STAYS], stays[-_BUNDLED_STAYS:]
    _ndjson(folder / "Patient.ndjson", map(cohort.patient, listed))
    _ndjson(folder / "Encounter.ndjson", map(cohort.encounter, listed))
    _ndjson(folder / "Observation.ndjson", (found for stay in listed for found in observed[stay.number]))
    entries = [
        {
            "fullUrl": f"http://example.org/fhir/{resource['resourceType']}/{resource['id']}",
            "resource": resource,
            "request": {"method": "PUT", "url": f"{resource['resourceType']}/{resource['id']}"},
        }
        for stay in bundled
        for resource in (cohort.patient(stay), cohort.encounter(stay), *observed[stay.number])
    ]
    bundle = {"resourceType": "Bundle", "id": "demo-bundle", "type": "transaction", "entry": entries}
    (folder / "bundle.json").write_bytes(orjson.dumps(bundle))
    if odd:
        lines = odd_lines(observed[1][5])
        (folder / "odd.ndjson").write_bytes(b"\n".join(lines) + b"\n")


def _ndjson(path: Path, resources: Iterable[cohort.Resource]) -> None:
    path.write_bytes(b"".join(orjson.dumps(resource, option=orjson.OPT_APPEND_NEWLINE) for resource in resources))


def _write_genome(folder: Path, rng: np.random.Generator, odd: bool) -> None:
    bases = genome.reference(rng)
    texts = {
        "fasta/windows.fasta": genome.sequences(rng),
        "vcf/demo.vcf": genome.vcf(rng, bases),
        "reference/demo.fasta": genome.reference_fasta(bases),
    }
    if odd:
        texts["fasta/invalid.fasta"] = genome.invalid_sequences(rng)
        texts["vcf/wrong-reference.vcf"] = genome.vcf(rng, bases, wrong_ref=True)
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii", newline="\n")
