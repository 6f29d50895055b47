"""The released splice-site weights on the data that they were fitted to: preparing has not drifted from training."""

import csv
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from medflow.plugin import Case, SequenceWindow
from medflow.records import Unit, UnitKind
from medflow_genomics.encoding import CLASSES
from medflow_genomics.splice import OUTPUT, SpliceSite


def test_the_released_weights_know_the_data_they_were_fitted_to(realdata: Callable[[str], Path]) -> None:
    with realdata("splice_train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    model = SpliceSite()
    model.load("cpu")

    now = datetime(2026, 1, 1, tzinfo=UTC)
    ready = [
        model.prepare(
            Case(
                unit=Unit(kind=UnitKind.SEQUENCE, id=number),
                prediction_time=now,
                inputs={"sequence": SequenceWindow(bases=row["sequence"])},
            )
        )
        for number, row in enumerate(rows, start=1)
    ]
    size = model.spec.batch_size
    answers = [answer for start in range(0, len(ready), size) for answer in model.predict(ready[start : start + size])]
    outcomes = Counter(
        "out of scope" if answer.out_of_scope else CLASSES[int(answer.values[OUTPUT].argmax())] == row["label"]  # type: ignore[union-attr]  # an array
        for row, answer in zip(rows, answers, strict=True)
    )

    assert outcomes["out of scope"] == 12
    assert round(outcomes[True] / (outcomes[True] + outcomes[False]), 3) == 0.991
