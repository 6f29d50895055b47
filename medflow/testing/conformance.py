"""The clauses of the plugin contract, each checked by running the model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from medflow.errors import CaseError, MedflowError
from medflow.inference.devices import as_medflow_error
from medflow.inference.explaining import Explanations, checked
from medflow.inference.lane import Lane
from medflow.inference.loaded import LoadedModel
from medflow.inference.results import results_of
from medflow.inference.runner import Runner
from medflow.inference.weights import read_weights
from medflow.plugin import Case, Explanation, Model, Prediction, SequenceAttribution, SequenceInput, SeriesAttribution
from medflow.registry import check_spec
from medflow.testing.cases import sample_cases
from medflow.testing.variants import chosen, indels_of_both_strands, reverse_complement, substitutions, with_windows
from medflow.variant_rule import variants_of

HEAVY = ("torch", "monai", "tensorflow", "jax", "onnxruntime", "transformers")
IMPORT_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One clause of the contract, and whether the model keeps it."""

    name: str
    passed: bool
    detail: str = ""


class _Broken(Exception):
    """A clause is not kept; the text says how."""


def check_model(model: type[Model], cases: Sequence[Case] | None = None, *, device: str = "cpu") -> list[Check]:
    """Run every clause of the contract on a model.

    Parameters
    ----------
    model
        The `Model` subclass.
    cases
        Two or more usable cases; random ones that fit the declared inputs are made when None.
    device
        Where to run it.
    """
    checks = [
        _check("the spec can be served as declared", lambda: check_spec(model.spec)),
        _check("reading the spec imports nothing heavy", lambda: _imports_light(model)),
        _check("the model card says what a reader must know", lambda: _card(model)),
        _check("the weights have the declared digest", lambda: _weights(model)),
    ]
    loaded = model()
    loading = _check("the model loads", lambda: loaded.load(device))
    checks.append(loading)
    if loading.passed:
        used = list(cases) if cases is not None else sample_cases(model.spec)
        checks.extend(_running(loaded, used, device))
        checks.append(_check("the model closes", loaded.close))
    return checks


def _running(model: Model, cases: Sequence[Case], device: str) -> Iterator[Check]:
    yield _check("outputs lie inside the declaration", lambda: _declared(model, cases, device))
    yield _check("the same input gives the same output", lambda: _same(model, _ready(model, cases), cases))
    yield _check("a batch equals its cases one by one", lambda: _batching(model, cases))
    yield _check("prepare is safe in threads", lambda: _threads(model, cases))
    yield _check("a bad case does not spoil its batch", lambda: _isolation(model, cases, device))
    if (variants := variants_of(model.spec)) is not None:
        yield _check("a variant's effects do not depend on the others", lambda: _apart(model, cases))
        if variants.strand == "both":
            yield _check("both strands give the same effects", lambda: _strands(model, cases))
    if type(model).explain is not Model.explain:
        yield _check("explanations keep the grid, and stay the same", lambda: _explains(model, cases, device))
    if model.spec.mixed_precision and device.startswith("cuda"):
        yield _check("mixed precision stays within the tolerance", lambda: _mixed(model, cases, device))


def _check(name: str, run: Callable[[], None]) -> Check:
    try:
        run()
    except _Broken as broken:
        return Check(name=name, passed=False, detail=str(broken))
    except MedflowError as error:
        return Check(name=name, passed=False, detail=error.message)
    except Exception as error:  # noqa: BLE001 - a third party's code under test
        return Check(name=name, passed=False, detail=f"{type(error).__name__}: {error}")
    return Check(name=name, passed=True)


def _imports_light(model: type[Model]) -> None:
    code = (
        f"import importlib, sys; importlib.import_module({model.__module__!r}); "
        f"print(','.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    same_path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(  # noqa: S603 - this interpreter, on a module that is already imported here
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=same_path,
        timeout=IMPORT_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise _Broken(f"importing {model.__module__} in a new process fails: {done.stderr.strip().splitlines()[-1]}")
    if heavy := done.stdout.strip():
        raise _Broken(f"importing {model.__module__} imports {heavy}: move it into load()")


def _card(model: type[Model]) -> None:
    card = model.spec.card
    empty = [name for name in ("intended_use", "training_data", "licence", "limits") if not getattr(card, name).strip()]
    if not card.metrics:
        empty.append("metrics")
    if empty:
        raise _Broken(f"the card leaves empty: {', '.join(empty)}")


def _weights(model: type[Model]) -> None:
    if (verify := getattr(model, "verify_weights", None)) is not None:  # of files that lie elsewhere
        verify()
        return
    package = model.__module__.rpartition(".")[0] or model.__module__
    for weights in model.spec.weights:
        read_weights(package, weights)


def _ready(model: Model, cases: Sequence[Case]) -> list:
    return [model.prepare(case) for case in cases]


def _declared(model: Model, cases: Sequence[Case], device: str) -> None:
    for case, prediction in zip(cases, _in_service(model, cases, device), strict=True):
        results_of(model.spec, case, prediction)


def _in_service(model: Model, cases: Sequence[Case], device: str) -> list[Prediction]:
    """The predictions under what medflow puts around them: torch's inference mode, autocast on CUDA."""
    with Lane(device).predicting(model.spec):
        return _predict(model, _ready(model, cases))


def _same(model: Model, ready: list, cases: Sequence[Case]) -> None:
    first = _predict(model, ready)
    _compare(model, first, _predict(model, ready), "predicted twice")
    _compare(model, first, _predict(model, _ready(model, cases)), "prepared and predicted again")


def _batching(model: Model, cases: Sequence[Case]) -> None:
    single = [prediction for case in cases for prediction in _predict(model, [model.prepare(case)])]
    _compare(model, single, _predict(model, _ready(model, cases)), f"in batches of {model.spec.batch_size}")


def _threads(model: Model, cases: Sequence[Case]) -> None:
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model.prepare, list(cases) * 4))[: len(cases)]
    _compare(model, _predict(model, _ready(model, cases)), _predict(model, together), "prepared in four threads")


def _isolation(model: Model, cases: Sequence[Case], device: str) -> None:
    def bad() -> Case:
        raise CaseError("kit", "a case that cannot be read")

    openers: list[Callable[[], Case]] = [lambda case=case: case for case in cases]
    openers.insert(1, bad)
    batches = Runner(LoadedModel(model, Lane(device)), threads=2).run(openers)
    outcomes = {item.index: item for batch in batches for item in batch}
    if sorted(outcomes) != list(range(len(openers))):
        raise _Broken("not every case came out exactly once")
    if outcomes[1].error is None:
        raise _Broken("the bad case has a prediction")
    lost = [index for index, outcome in outcomes.items() if index != 1 and outcome.error is not None]
    if lost:
        error = outcomes[lost[0]].error
        raise _Broken(f"{len(lost)} good cases went down with the bad one ({error})")
    good = [outcomes[index].prediction for index in sorted(outcomes) if index != 1]
    alone = _in_service(model, cases, device)
    _compare(model, alone, [item for item in good if item is not None], "beside a bad case")


def _apart(model: Model, cases: Sequence[Case]) -> None:
    """Every second variant of each case, and the others, without the rest beside all of them together."""
    _compare(model, *_some_of(model, cases, slice(0, None, 2)), "with half of the variants")
    _compare(model, *_some_of(model, cases, slice(1, None, 2)), "with half of the variants")


def _some_of(model: Model, cases: Sequence[Case], rows: slice) -> tuple[list[Prediction], list[Prediction]]:
    """What is said of some variants of each case: with the rest of it, and without."""
    together, alone = [], []
    for case in cases:
        (whole,) = _predict(model, [model.prepare(case)])
        part = with_windows(case, chosen(case.variants, np.arange(len(case.variants))[rows]))
        values = {name: np.asarray(value)[rows] for name, value in whole.values.items()}
        together.append(replace(whole, values=values))
        alone += _predict(model, [model.prepare(part)])
    return together, alone


def _strands(model: Model, cases: Sequence[Case]) -> None:
    parts = [with_windows(case, chosen(case.variants, substitutions(case.variants))) for case in cases]
    turned = [with_windows(case, reverse_complement(case.variants)) for case in parts]
    forward, backward = (_predict(model, _ready(model, part)) for part in (parts, turned))
    _compare(model, forward, backward, "read from the other strand")
    (wanted,) = (item for item in model.spec.accepts if isinstance(item, SequenceInput))
    pairs = indels_of_both_strands(wanted, np.random.default_rng(0))
    made = [[with_windows(cases[0], pair[strand]) for pair in pairs] for strand in (0, 1)]
    forward, backward = (_predict(model, _ready(model, part)) for part in made)
    _compare(model, forward, backward, "insertions and deletions are read from the other strand")


def _explains(model: Model, cases: Sequence[Case], device: str) -> None:
    together = _explanations(model, cases, model.spec.batch_size, device)
    ways = {"explained again": model.spec.batch_size, "explained alone": 1}
    for how, size in ways.items():
        for number, (left, right) in enumerate(zip(together, _explanations(model, cases, size, device), strict=True)):
            if left.keys() != right.keys():
                raise _Broken(f"other outputs of case {number} are explained when it is {how}")
            if differing := [name for name in left if not _alike(model, left[name], right[name])]:
                raise _Broken(f"the explanation of {', '.join(differing)} of case {number} differs when it is {how}")


def _alike(model: Model, one: Explanation, other: Explanation) -> bool:
    """Whether two explanations of one answer differ by no more than the tolerance, of the largest number or of 1."""
    if isinstance(one, SequenceAttribution) and isinstance(other, SequenceAttribution) and one.of != other.of:
        return False
    pairs = list(zip(_arrays(one), _arrays(other), strict=True))
    scale = max(float(np.nanmax(np.abs(left), initial=1.0)) for left, _ in pairs)
    tolerance = model.spec.tolerance * scale
    return all(np.allclose(left, right, rtol=0, atol=tolerance, equal_nan=True) for left, right in pairs)


def _arrays(found: Explanation) -> tuple[np.ndarray, ...]:
    if isinstance(found, SeriesAttribution):
        return found.values, found.statics
    return (found.values,) if isinstance(found, SequenceAttribution) else (found,)


def _explanations(model: Model, cases: Sequence[Case], size: int, device: str) -> list[Explanations]:
    """What is left of the explanations after medflow's own checks, asked for as a run asks for them."""
    lane = Lane(device)
    found: list[Explanations] = []
    for start in range(0, len(cases), size):
        batch = cases[start : start + size]
        ready = _ready(model, batch)
        with lane.predicting(model.spec):
            predictions = _predict(model, ready)
        answered = [place for place, item in enumerate(predictions) if item.out_of_scope is None]
        if not answered:
            found.extend({} for _ in batch)
            continue
        with lane.explaining():
            explained = model.explain([ready[place] for place in answered], [predictions[place] for place in answered])
        if len(explained) != len(answered):
            raise _Broken(f"explain gave {len(explained)} explanations for a batch of {len(answered)}")
        given = zip(answered, explained, strict=True)
        checked_ones = {place: checked(model.spec, batch[place], answer) for place, answer in given}
        found.extend(checked_ones.get(place, {}) for place in range(len(batch)))
    return found


def _mixed(model: Model, cases: Sequence[Case], device: str) -> None:
    full = _predict(model, _ready(model, cases))
    _compare(model, full, _in_service(model, cases, device), "computed in mixed precision")


def _predict(model: Model, ready: list) -> list[Prediction]:
    size = model.spec.batch_size
    found: list[Prediction] = []
    for start in range(0, len(ready), size):
        batch = ready[start : start + size]
        try:
            predictions = model.predict(batch)
        except Exception as error:  # noqa: BLE001 - a third party's code under test
            raise _Broken(f"predict fails on a batch of {len(batch)}: {as_medflow_error(error)}") from error
        if len(predictions) != len(batch):
            raise _Broken(f"predict gave {len(predictions)} predictions for a batch of {len(batch)}")
        found.extend(predictions)
    return found


def _compare(model: Model, one: Sequence[Prediction], other: Sequence[Prediction], how: str) -> None:
    for number, (left, right) in enumerate(zip(one, other, strict=True)):
        if left.out_of_scope != right.out_of_scope or set(left.values) != set(right.values):
            raise _Broken(f"case {number} is answered differently when {how}")
        for name, value in left.values.items():
            difference = _difference(np.asarray(value), np.asarray(right.values[name]))
            if not difference <= model.spec.tolerance:
                raise _Broken(
                    f"output {name} of case {number} differs by {difference:.3g} when {how}; "
                    f"the spec's tolerance is {model.spec.tolerance:g}"
                )


def _difference(value: np.ndarray, other: np.ndarray) -> float:
    """The part of a mask that differs, the most that a number does; NaN is like NaN only."""
    if value.dtype == np.bool_:
        return float(np.mean(value != other))
    if value.shape != other.shape or not np.array_equal(np.isnan(value), np.isnan(other)):
        return float("inf")
    differences = np.abs(value.astype(float) - other.astype(float))
    return float(np.max(differences[~np.isnan(differences)], initial=0.0))
