"""What becomes of the effects of a sample's variants: a file with all of their scores, and those that are reported.

The file is text, tab-separated, gzipped, with a header that says what made it; the same scores make the same bytes. It
names neither the sample nor the patient.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice

import numpy as np

from medflow.errors import ConfigurationError
from medflow.inference.results import scores_of
from medflow.plugin import ModelSpec, Prediction, VariantEffect
from medflow.records import CalledVariant, Result, VariantScore
from medflow.registry import RegisteredModel
from medflow.samples import CalledCase
from medflow.store import Store

MOST_REPORTED = 1000  # of a sample: each is two Observations
BEYOND = "not-reported-beyond-limit"
OUT_OF_SCOPE = "out-of-scope"
BLOCK = 10_000  # lines that are compressed at once
DIGITS = 6  # significant ones of a number in the file
COLUMNS = ("#CHROM", "POS", "REF", "ALT", "GENE", "ZYGOSITY", "PHASE", "DEPTHS", "SCORE")


def has_effects(spec: ModelSpec) -> bool:
    """Whether a model answers with effects of variants."""
    return any(isinstance(output, VariantEffect) for output in spec.outputs)


def keep_variant_scores(
    store: Store, model: RegisteredModel, case: CalledCase, prediction: Prediction, results: Sequence[Result]
) -> list[Result]:
    """Keep the scores of all variants in the object store; returns the results, with those that are to be reported.

    Of more than `MOST_REPORTED` those with the highest scores are. Safe in any thread.
    """
    kept: list[Result] = []
    for result in results:
        output = model.spec.output(result.output)
        if not isinstance(output, VariantEffect) or result.out_of_scope is not None:
            kept.append(result)
            continue
        effects = np.asarray(prediction.values[output.name])
        scores = scores_of(output, effects, len(case.found.variants))
        kept.append(_kept(store, model, output, case, replace(result, build=case.build), effects, scores))
    return kept


def _kept(
    store: Store,
    model: RegisteredModel,
    output: VariantEffect,
    case: CalledCase,
    result: Result,
    effects: np.ndarray,
    scores: np.ndarray,
) -> Result:
    chosen, beyond = _reported(scores, output.report_from)
    counts = {**case.found.counts, **result.counts, "reported": len(chosen)}
    if beyond:
        counts[BEYOND] = beyond
    lines = _header(model, output, case, counts)
    data = _packed(lines, _rows(case.found.variants, effects, scores))
    variants = case.found.variants
    return replace(
        result,
        scores=store.objects.put(data),
        counts=dict(sorted(counts.items())),
        variants=tuple(
            VariantScore(
                variant=variants[place], score=float(scores[place]), effects=tuple(float(x) for x in effects[place])
            )
            for place in chosen
        ),
    )


def _reported(scores: np.ndarray, least: float) -> tuple[list[int], int]:
    """The places of the variants that are reported, in their order, and how many more would have been."""
    above = np.flatnonzero(scores >= least)  # NaN is not
    highest = above[np.argsort(-scores[above], kind="stable")][:MOST_REPORTED]
    return sorted(highest.tolist()), len(above) - len(highest)


# --- the file ----------------------------------------------------------------------------------------------------


def _header(model: RegisteredModel, output: VariantEffect, case: CalledCase, counts: Mapping[str, int]) -> list[str]:
    said = {
        "fileformat": "medflow-variant-scores-1",
        "model": model.name,
        "version": model.spec.version,
        "digest": model.digest,
        "output": output.name,
        "reportFrom": f"{output.report_from:.{DIGITS}g}",
        "assembly": case.build,
        "reference": case.reference,
        "regions": case.regions,
        "vcf": f"urn:sha256:{case.file}",
    }
    lines = [f"##{name}={value}" for name, value in said.items()]
    lines += [f"##effect={item.name}" for item in output.effects]
    lines += [f"##count={reason}:{count}" for reason, count in sorted(counts.items())]
    return [*lines, "\t".join([*COLUMNS, *(item.name for item in output.effects), "REASON"])]


def _rows(variants: Sequence[CalledVariant], effects: np.ndarray, scores: np.ndarray) -> Iterator[str]:
    numbers = "\t".join([f"%.{DIGITS}g"] * (1 + effects.shape[1]))
    outside = "\t".join([*["."] * (1 + effects.shape[1]), OUT_OF_SCOPE])
    for variant, row, score in zip(variants, effects.tolist(), scores.tolist(), strict=True):
        told = outside if math.isnan(score) else f"{numbers % (score, *row)}\t."
        yield f"{_called(variant)}\t{told}"


def _called(variant: CalledVariant) -> str:
    depths = ",".join(map(str, variant.depths)) if variant.depths else "."
    said = f"{variant.gene or '.'}\t{variant.zygosity or '.'}\t{variant.phase or '.'}\t{depths}"
    return f"{variant.contig}\t{variant.position}\t{variant.ref}\t{variant.alt}\t{said}"


def _packed(header: Sequence[str], rows: Iterator[str]) -> bytes:
    """Gzip without a name and a time, so that the same lines are the same bytes."""
    data = io.BytesIO()
    lines = chain(header, rows)
    with gzip.GzipFile(filename="", mode="wb", fileobj=data, compresslevel=6, mtime=0) as file:
        while block := list(islice(lines, BLOCK)):
            file.write(("\n".join(block) + "\n").encode())
    return data.getvalue()


def scores_file(store: Store, results: Sequence[Result], output: str | None = None) -> tuple[Result, bytes]:
    """The file with all scores of a job, of the named output or of the only one; and its result.

    Raises
    ------
    ConfigurationError
        The job has none, or several and none is named, or the object is no longer there.
    """
    kept = {result.output: result for result in results if result.scores is not None}
    names = ", ".join(sorted(kept)) or "none"
    if output is None and len(kept) != 1:
        raise ConfigurationError(f"the job has scores of variants for: {names}" + (": name one" if kept else ""))
    found = kept.get(output) if output is not None else next(iter(kept.values()))
    if found is None or found.scores is None:
        raise ConfigurationError(f"the job has no scores of variants for {output!r}; it has them for: {names}")
    try:
        return found, store.objects.get(found.scores)
    except KeyError:
        raise ConfigurationError("the file of the scores is no longer in the object store: score again") from None
