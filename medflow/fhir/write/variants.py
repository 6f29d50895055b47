"""Scores of variants: each variant an Observation, what a model says of it another, and one of the sample as a whole.

The variant follows the Variant profile of HL7's Genomics Reporting guide (STU2 and STU3, R4), as far as a VCF tells. It
restates the laboratory's file, so that it bears no label of software and no Device, and is the same of every model that
reports it: sent once, by an id in which no model takes part.
"""

from __future__ import annotations

from medflow.errors import PredictionInvalid
from medflow.fhir.write.elements import (
    COMPONENT,
    Json,
    coded,
    concept,
    made_id,
    quantity,
    reference,
    subject_element,
    time,
    without_empty,
)
from medflow.fhir.write.genome import ASSEMBLIES, CHROMOSOMES, MITOCHONDRION, NUCCORE, loinc, place_of
from medflow.fhir.write.observations import CATEGORY, ResultContext, absent, identified, observation, whose
from medflow.plugin import VariantEffect
from medflow.records import CalledVariant, Coding, Result, VariantScore
from medflow.variant_rule import VARIANT

SECTION = "http://terminology.hl7.org/CodeSystem/v2-0074"  # diagnostic service sections: GE is genetics
KIND = "urn:medflow:observation"  # codes of Observations that no terminology has
CHROMOSOME = "Chromosome [Identifier] in Blood or Tissue by Molecular genetics method"
PRESENT = ("LA9633-4", "Present")
ONE_BASED = ("LA30102-0", "1-based character counting")
ZYGOSITY = {
    "heterozygous": ("LA6706-1", "Heterozygous"),
    "homozygous": ("LA6705-3", "Homozygous"),
    "hemizygous": ("LA6707-9", "Hemizygous"),
}


def variant_resources(context: ResultContext, output: VariantEffect, result: Result) -> list[Json]:
    """Of each reported variant its Observation and that of its score, and last the summary of the sample.

    Raises
    ------
    PredictionInvalid
        A score has another number of effects than the output declares.
    """
    if result.out_of_scope is not None:
        return [_summary(context, output) | absent(result.out_of_scope)]
    found: list[Json] = []
    for item in result.variants:
        variant = _variant(context, item.variant, result.build)
        found += [variant, _score(context, output, item, variant["id"])]
    return [*found, _summarised(context, output, result, [f"Observation/{score['id']}" for score in found[1::2]])]


def _variant(context: ResultContext, variant: CalledVariant, build: str | None) -> Json:
    """What the file says of a variant. Its id is over the patient, the file with its sample, and the allele."""
    inputs = (repr(reference(item)) for item in context.inputs)
    allele = (build, variant.contig, variant.position, variant.ref, variant.alt)
    key = made_id("Observation", "variant", *whose(context.subject), "inputs", *inputs, *allele)
    return without_empty(
        {
            **identified(key, "Observation"),
            "status": context.status,
            "category": [coded(CATEGORY, "laboratory"), coded(SECTION, "GE")],
            "code": loinc(VARIANT.code, VARIANT.display or ""),
            "subject": subject_element(context.subject),
            "encounter": {"reference": context.encounter} if context.encounter else None,
            "effectiveDateTime": time(context.effective),
            "issued": time(context.issued),
            "valueCodeableConcept": loinc(*PRESENT),
            "specimen": context.specimen,
            "derivedFrom": context.derived_from,
            "component": [*_place(variant, build), *_call(variant, build)],
        }
    )


def _place(variant: CalledVariant, build: str | None) -> list[Json]:
    """Where it is: on which sequence, from which base to which, and what stands there instead of what."""
    chromosome, accession = place_of(variant.contig, build)
    sequence = {"coding": [{"system": NUCCORE, "code": accession}]} if accession else {"text": variant.contig}
    place = {
        "low": {"value": variant.position},
        "high": {"value": variant.position + len(variant.ref) - 1},
    }
    found: list[Json] = []
    if build in ASSEMBLIES:
        assembly = loinc(ASSEMBLIES[build], build)
        found.append(_coded("62374-4", "Human reference sequence assembly version", assembly))
    found.append(_coded("48013-7", "Genomic reference sequence [ID]", sequence))
    if chromosome in CHROMOSOMES:  # the answer list is binding, and has no mitochondrion
        named = loinc(CHROMOSOMES[chromosome], f"Chromosome {chromosome}")
        found.append(
            _coded("48000-4", "Chromosome [Identifier] in Blood or Tissue by Molecular genetics method", named)
        )
    return [
        *found,
        _coded("92822-6", "Genomic coordinate system [Type]", loinc(*ONE_BASED)),
        {"code": loinc("81254-5", "Genomic allele start-end"), "valueRange": place},
        {"code": loinc("69547-8", "Genomic ref allele [ID]"), "valueString": variant.ref},
        {"code": loinc("69551-0", "Genomic alt allele [ID]"), "valueString": variant.alt},
    ]


def _call(variant: CalledVariant, build: str | None) -> list[Json]:
    """How the sample carries it, as far as the file tells."""
    found: list[Json] = []
    # A mitochondrion has no zygosity, and how callers write heteroplasmy as a genotype differs: the reads tell.
    nuclear = place_of(variant.contig, build)[0] != MITOCHONDRION and variant.contig not in ("M", "chrM")
    if variant.zygosity is not None and nuclear:
        found.append(_coded("53034-5", "Allelic state", loinc(*ZYGOSITY[variant.zygosity])))
    if variant.depths is not None:
        reads = quantity(variant.depths[1], "1")
        found.append({"code": loinc("82121-5", "Allelic read depth"), "valueQuantity": reads})
    if variant.gene is not None:  # its symbol; HGNC's id, which would be the code, is not in the annotation
        found.append(_coded("48018-6", "Gene studied [ID]", {"text": variant.gene}))
    if variant.phase is not None:
        found.append(_coded("82120-7", "Allelic phase", {"text": _phase(variant.phase)}))
    return found


def _phase(phase: str) -> str:
    """A set alone would read as if all in it lay in cis."""
    name, _, place = phase.partition(":")
    return f"phase set {name}, haplotype {place}" if place else f"phase set {name}"


def _score(context: ResultContext, output: VariantEffect, item: VariantScore, variant_id: str) -> Json:
    """What the model says of one variant: a component for each effect."""
    if len(item.effects) != len(output.effects):
        raise PredictionInvalid(
            "prediction-malformed",
            f"output {output.name} declares {len(output.effects)} effects and a score has {len(item.effects)}",
        )
    found = observation(context, output.name, output.code, variant_id)
    found["valueQuantity"] = quantity(item.score, "1")
    found["derivedFrom"] = [{"reference": f"Observation/{variant_id}"}, *found.get("derivedFrom", ())]
    found["component"] = [
        {"code": _effect_code(label.code, label.name, output.code), "valueQuantity": quantity(effect, "1")}
        for label, effect in zip(output.effects, item.effects, strict=True)
    ]
    return found


def _effect_code(code: Coding, name: str, of: Coding) -> Json:
    # obs-7: no component may have the code of an Observation that has a value; the name tells it then
    return {"text": name} if code == of else concept(code) | {"text": name}


def _summary(context: ResultContext, output: VariantEffect) -> Json:
    named = output.code.display or output.name
    return observation(context, output.name, Coding(system=KIND, code="variant-scores")) | {
        "code": coded(KIND, "variant-scores") | {"text": f"{named}: variants reported of a sample"}
    }


def _summarised(context: ResultContext, output: VariantEffect, result: Result, scores: list[str]) -> Json:
    """How many variants are reported, and what became of all others: nothing to report is a result, too."""
    found = _summary(context, output)
    parts = [
        _part("model-output", output.name, {"valueCodeableConcept": concept(output.code)}),
        _part("report-from", "reported from this score on", {"valueQuantity": quantity(output.report_from, "1")}),
    ]
    if result.value is not None:
        parts.append(_part("largest-score", "largest score", {"valueQuantity": quantity(result.value, "1")}))
    for name, count in sorted(result.counts.items()):
        parts.append(_part("variants", f"variants: {name}", {"valueQuantity": quantity(count, "1")}))
    if result.scores is not None:
        parts.append(
            _part("scores", "SHA-256 of the file of all scores", {"valueString": f"urn:sha256:{result.scores}"})
        )
    return without_empty(
        {
            **found,
            "valueQuantity": quantity(len(result.variants), "1"),
            "hasMember": [{"reference": name} for name in scores],
            "component": parts,
        }
    )


def _part(code: str, text: str, value: Json) -> Json:
    return {"code": coded(COMPONENT, code) | {"text": text}, **value}


def _coded(code: str, display: str, value: Json) -> Json:
    return {"code": loinc(code, display), "valueCodeableConcept": value}
