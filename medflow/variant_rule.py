"""What a model of sequences or variants may declare: its window, its assembly, and effects of variants only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from medflow.plugin import LOINC, ModelSpec, Segment, SequenceInput, VariantEffect
from medflow.records import Coding, UnitKind

LONGEST = 1_000_000  # bases of one window
VARIANT = Coding(system=LOINC, code="69548-6", display="Genetic variant assessment")  # of the variant, not its score


def variants_of(spec: ModelSpec) -> SequenceInput | None:
    """The input by which a model is given the variants of a sample; None of any other model."""
    found = (item for item in spec.accepts if isinstance(item, SequenceInput) and item.source == "variants")
    return next(found, None)


def assemblies_of(specs: Iterable[ModelSpec]) -> frozenset[str]:
    """The assemblies that models of variants among these read."""
    return frozenset(wanted.assembly for spec in specs if (wanted := variants_of(spec)) is not None and wanted.assembly)


def rule_of(item: SequenceInput) -> str:
    """What a model is given, in a line."""
    if item.source == "sequence":
        return f"{item.length} bases of {item.alphabet}"
    passing = "that FILTER passed" if item.passing_only else "whatever FILTER says"
    quality = "" if item.min_quality is None else f", QUAL {item.min_quality:g} or more"
    return (
        f"variants of a sample on {item.assembly}, {passing}{quality}, alleles up to {item.max_allele} bases: windows "
        f"of {item.length}, {'either strand' if item.strand == 'both' else 'forward strand'}"
    )


def problems_of(spec: ModelSpec) -> list[str]:
    """What of a model's sequences and effects cannot be served as declared, in words; nothing where all can."""
    inputs = [item for item in spec.accepts if isinstance(item, SequenceInput)]
    effects = [item for item in spec.outputs if isinstance(item, VariantEffect)]
    found = [problem for item in inputs for problem in _problems_of_input(item, spec.unit)]
    found += [problem for item in effects for problem in _problems_of_effect(item)]
    found += [
        f"the code of output {item.name} is that of the variant itself (LOINC {VARIANT.code}), for which its result "
        "would be taken: give it a code of its own, of a code system of yours where no other has one"
        for item in spec.outputs
        if not isinstance(item, Segment) and (item.code.system, item.code.code) == (VARIANT.system, VARIANT.code)
    ]
    found += _mismatched(spec, effects)
    return found


def _mismatched(spec: ModelSpec, effects: Sequence[VariantEffect]) -> list[str]:
    if variants_of(spec) is None:
        names = ", ".join(item.name for item in effects)
        return [f"output {names} is an effect of variants, and no input has source 'variants'"] if effects else []
    others = [item.name for item in spec.outputs if not isinstance(item, VariantEffect)]
    return [f"of the variants of a sample a VariantEffect is told, and output {name} is none" for name in others]


def _problems_of_input(item: SequenceInput, unit: UnitKind) -> list[str]:
    found: list[str] = []
    if not 1 <= item.length <= LONGEST:
        found.append(f"the length of a window is 1 to {LONGEST} bases")
    if not item.alphabet or len(set(item.alphabet)) != len(item.alphabet):
        found.append("the alphabet names each letter once")
    if item.source == "sequence":
        wrong = unit is UnitKind.SAMPLE
        return [*found, "stored sequences are scored per sequence, not sample"] if wrong else found
    if unit is UnitKind.SEQUENCE:
        found.append("variants are scored per sample, not sequence")
    if item.assembly is None:
        found.append("an input of variants names its assembly: GRCh37 or GRCh38")
    if item.max_allele < 1:
        found.append("max_allele must be 1 or more")
    if item.min_quality is not None and not (math.isfinite(item.min_quality) and item.min_quality >= 0):
        found.append("min_quality must be 0 or more")
    return found


def _problems_of_effect(item: VariantEffect) -> list[str]:
    found: list[str] = []
    names = [effect.name for effect in item.effects]
    if not names or len(set(names)) != len(names):
        found.append(f"output {item.name} names its effects, each once")
    low, high = item.valid_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        found.append(f"the valid_range of output {item.name} is the least, then the largest")
    elif not 0 <= item.report_from <= max(abs(low), abs(high)):
        found.append(f"no score of output {item.name} can be {item.report_from:g} (report_from)")
    return found
