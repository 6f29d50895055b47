"""The released model on the challenge's text files, without a store: what a delivery must reproduce.

    python -m medflow_risk.evaluate --set-a DIR --loinc CSV [--out FILE.csv] [--limit N]

The released ensemble has seen these stays in training, so its figures here are no estimate of how good it is: for
that, see the cross-validation in MODEL_CARD.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from medflow.plugin import Case, TimeSeries, Unit, UnitKind
from medflow_risk.channels import HOURS
from medflow_risk.data import ADMISSION, Cohort, read_cohort
from medflow_risk.metrics import report
from medflow_risk.mortality import SPEC, IcuMortality, Prepared

AT = datetime(ADMISSION.year, ADMISSION.month, ADMISSION.day, tzinfo=UTC) + timedelta(hours=HOURS)


def cases_of(cohort: Cohort) -> list[Case]:
    """Each stay as the store would give it."""
    return [
        Case(
            unit=Unit(kind=UnitKind.ENCOUNTER, id=number),
            prediction_time=AT,
            inputs={"series": TimeSeries(values=values, statics=statics)},
        )
        for number, (values, statics) in enumerate(zip(cohort.values, cohort.statics, strict=True), start=1)
    ]


def predicted(model: IcuMortality, ready: Sequence[Prepared]) -> np.ndarray:
    """The probability of each prepared stay, NaN where the model has no answer; in batches as in service."""
    size = SPEC.batch_size
    answers = [answer for start in range(0, len(ready), size) for answer in model.predict(ready[start : start + size])]
    return np.array([answer.values.get("in-hospital-death", np.nan) for answer in answers], dtype=np.float64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the files and print the metrics and times as JSON."""
    parser = argparse.ArgumentParser(prog="python -m medflow_risk.evaluate", description=__doc__)
    parser.add_argument("--set-a", type=Path, required=True, help="folder with set A's text files and outcomes")
    parser.add_argument("--loinc", type=Path, required=True, help="CSV: parameter, system, code, unit_ucum")
    parser.add_argument("--out", type=Path, help="CSV of RecordID, p")
    parser.add_argument("--limit", type=int, help="only the first stays")
    options = parser.parse_args(arguments)
    cohort = read_cohort(options.set_a, options.loinc, limit=options.limit)
    model = IcuMortality()
    model.load("cpu")
    started = time.monotonic()
    ready = [model.prepare(case) for case in cases_of(cohort)]
    prepared = time.monotonic()
    risks = predicted(model, ready)
    done = time.monotonic()
    if options.out is not None:
        with options.out.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["RecordID", "p"])
            rows.writerows(zip(cohort.records.tolist(), risks.tolist(), strict=True))
    metrics: dict[str, object] = {"refused": cohort.refused, **report(cohort.died, risks)}
    metrics |= {"prepare_s": prepared - started, "forward_s": done - prepared}
    sys.stdout.write(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
