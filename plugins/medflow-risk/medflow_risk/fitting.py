"""Fitting one member: scales, trees and networks of the course, from the same stays; seeded.

Used by `train` for the release and by `IcuMortality.fit` for a site's own cohort.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit, ndtri
from torch import Tensor, nn

from medflow.plugin import Epoch, Examples, Fitted
from medflow_risk.boosting import boosted
from medflow_risk.channels import STATICS
from medflow_risk.data import LOG_DAYS, WITHIN_A_YEAR
from medflow_risk.features import WIDTH, features
from medflow_risk.metrics import auroc, best_threshold
from medflow_risk.network import SHARES, Core, Course, Ensemble, Member, Reading, Trees, by_step

KNOTS = 33
TAIL = 0.01  # the lowest and highest value count as these shares of the stays
FEWEST = 20  # known values of a column that is read at all
WEIGHT_DECAY = 1e-2
HELP = 0.1  # weight of the loss on what else is known of how a stay ended
WEEK_DAYS = 7
OF_DEATH, OF_A_YEAR, OF_A_WEEK = 4.0, 2.0, 1.0  # weights of the trees of each outcome


@dataclass(frozen=True, kw_only=True)
class Samples:
    """``sequence`` (n, 3, steps, channels), ``summary`` (n, columns), ``died`` (n,) of 0 and 1.

    ``other`` (n, 4) is what else is known of how each stay ended, as `data.Cohort` has it: learnt beside, to help.
    """

    sequence: Tensor
    summary: Tensor
    died: Tensor
    other: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a member is fitted; the defaults are those of the release."""

    core: Core = "lstm"
    hidden: int = 40
    dropout: float = 0.4
    hidden_channels: float = 0.2  # how often training hides a whole channel of a stay
    learning_rate: float = 2e-3
    epochs: int = 10
    batch: int = 64
    trees: int = 200
    tree_rate: float = 0.08


Told = Callable[[Epoch], None]


def samples_of(values: np.ndarray, statics: np.ndarray, died: np.ndarray, other: np.ndarray | None = None) -> Samples:
    """The features of stays as `data.Cohort` or `medflow.plugin.Examples` hold them."""
    sequence, summary = features(values, statics)
    return Samples(
        sequence=torch.from_numpy(sequence),
        summary=torch.from_numpy(summary),
        died=torch.from_numpy(died.astype(np.float32)),
        other=None if other is None else torch.from_numpy(other.astype(np.float32)),
    )


def scaled(samples: Samples, stays: np.ndarray) -> Member:
    """A member that has the scales of ``stays``, and has learnt nothing else yet."""
    member = Member([], knots=KNOTS, trees=0)
    filled = samples.sequence[stays, 0].flatten(0, 1)
    known = ~torch.isnan(filled)
    count = known.sum(0).clamp(min=1)
    member.mean = torch.nan_to_num(filled).sum(0) / count
    member.scale = (torch.nan_to_num(filled - member.mean).square().sum(0) / count).sqrt().clamp(min=1e-3)
    member.knots, member.normal = normal_scores(samples.summary[stays].numpy())
    return member.eval()


def read(member: Member, samples: Samples) -> Reading:
    """What the member reads of all stays."""
    with torch.no_grad():
        return member.read(samples.sequence, samples.summary)


def grown(reading: Reading, outcome: Tensor, stays: np.ndarray, recipe: Recipe, seed: int) -> Trees:
    """Trees for an outcome of ``stays``, which is 0 and 1."""
    known = reading.known[stays].numpy() > 0
    scores = np.where(known, reading.scores[stays].numpy(), np.nan)
    return boosted(scores, outcome[stays].numpy(), trees=recipe.trees, rate=recipe.tree_rate, seed=seed)


def of_other_outcomes(
    reading: Reading, samples: Samples, stays: np.ndarray, recipe: Recipe, seed: int
) -> list[tuple[float, Trees]]:
    """Weight and trees of each other outcome of ``stays`` that the samples tell.

    Deaths in hospital are few; who died soon and who died after discharge say more of how ill each patient was.
    """
    return [
        (weight, grown(reading, outcome, stays, recipe, seed))
        for weight, outcome in other_outcomes(samples)
        if outcome[stays].min() < outcome[stays].max()
    ]


def other_outcomes(samples: Samples) -> list[tuple[float, Tensor]]:
    """Weight and 0 or 1 for each stay: died within a year, in hospital or later; died in hospital within a week.

    A patient not known to have died is counted as alive, and a death after an unknown time as none within the week.
    """
    if samples.other is None:
        return []
    days = samples.other[:, LOG_DAYS].exp().round()
    within_a_week = (samples.died > 0) & (days <= WEEK_DAYS)
    return [(OF_A_YEAR, (samples.other[:, WITHIN_A_YEAR] > 0).float()), (OF_A_WEEK, within_a_week.float())]


def fit_course(
    samples: Samples,
    reading: Reading,
    stays: np.ndarray,
    recipe: Recipe,
    seed: int,
    *,
    watched: np.ndarray,
    stop_early: bool = False,
    device: str = "cpu",
    report: Told = lambda _: None,
    number: int = 0,
) -> Course:
    """One network of the course, of what a member reads of the samples.

    ``report`` is told of the stays ``watched`` after each epoch. With ``stop_early`` the epoch with the least loss on
    them is kept; else they decide nothing, and the last is.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Course(recipe.core, recipe.hidden, recipe.dropout).to(device)
    other, helper = _helper(samples, stays, net)
    helper.to(device)
    batches = -(-len(stays) // recipe.batch)
    parameters = [*net.parameters(), *helper.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches)
    best, least = copy.deepcopy(net.state_dict()), np.inf
    for epoch in range(1, recipe.epochs + 1):
        net.train()
        losses = []
        for batch in np.array_split(rng.permutation(stays), batches):
            pooled = net.pooled(_hidden(reading, batch, recipe.hidden_channels).to(device))
            loss = _loss(net.head(pooled)[:, 0], samples.died[batch].to(device))
            losses.append(float(loss.detach()))
            if other is not None:
                loss = loss + HELP * _squared(helper(pooled), other[batch].to(device))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
        net.eval()
        answers = course_logits(net, reading, watched, device)
        told = _epoch(epoch, losses, answers, samples.died[watched], number)
        if not stop_early or told.validation_loss < least:
            best, least = copy.deepcopy(net.state_dict()), told.validation_loss
        report(told)
    net.load_state_dict(best)
    return net.cpu().eval()


def course_logits(net: Course, reading: Reading, stays: np.ndarray, device: str = "cpu") -> np.ndarray:
    """What a network of the course makes of ``stays``."""
    with torch.inference_mode():
        return net(_steps(reading, stays, device)).cpu().numpy()


def parts_of(member: Member, reading: Reading, stays: np.ndarray) -> dict[str, np.ndarray]:
    """`Member.parts` of ``stays``, and what they come to ("joined"); in double precision."""
    found: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        for some in np.array_split(stays, -(-len(stays) // 256)):
            for name, logit in member.parts(Reading(*(part[some] for part in reading))).items():
                found.setdefault(name, []).append(logit.double().numpy())
    parts = {name: np.concatenate(logits) for name, logits in found.items()}
    return parts | {"joined": np.sum([share * parts[name] for name, share in SHARES.items()], axis=0)}


def normal_scores(columns: np.ndarray) -> tuple[Tensor, Tensor]:
    """Knots of each column, ascending, and the normal score at each: (columns, KNOTS) twice.

    A column that hardly anybody has, or that never differs, gets 0 throughout.
    """
    share = np.linspace(0, 1, KNOTS)
    knots = np.tile(np.arange(KNOTS, dtype=np.float64), (columns.shape[1], 1))
    normal = np.zeros_like(knots)
    for place, column in enumerate(columns.T.astype(np.float64)):
        known = column[~np.isnan(column)]
        if len(known) < FEWEST or known.min() == known.max():
            continue
        at = np.quantile(known, share).astype(np.float32)
        value = np.unique(at)
        middle = (share[np.searchsorted(at, value)] + share[np.searchsorted(at, value, side="right") - 1]) / 2
        beyond = value[-1] + (1 + abs(value[-1])) * np.arange(1, KNOTS - len(value) + 1)
        knots[place] = np.concatenate([value, beyond])
        score = ndtri(middle.clip(TAIL, 1 - TAIL))
        normal[place] = np.concatenate([score, np.full(len(beyond), score[-1])])
    return torch.from_numpy(knots).float(), torch.from_numpy(normal).float()


def platt(logit: np.ndarray, died: np.ndarray, rounds: int = 25) -> tuple[float, float]:
    """Slope and intercept of a logistic regression of the outcome on the logit (Newton's method)."""
    design = np.stack([logit, np.ones_like(logit)], axis=1).astype(np.float64)
    weights = np.array([1.0, 0.0])
    for _ in range(rounds):
        chance = expit(design @ weights)
        curvature = design.T @ (design * (chance * (1 - chance))[:, None]) + 1e-3 * np.eye(2)
        weights = weights - np.linalg.solve(curvature, design.T @ (chance - died) + 1e-3 * (weights - [1.0, 0.0]))
    return float(weights[0]), float(weights[1])


def _steps(reading: Reading, stays: np.ndarray, device: str) -> Tensor:
    return by_step(reading.course[stays], _statics(reading)[stays]).to(device)


def _statics(reading: Reading) -> Tensor:
    return reading.scores[:, -len(STATICS) :]


def _hidden(reading: Reading, stays: np.ndarray, share: float) -> Tensor:
    """Some channels made unknown: a network must not need what another hospital does not measure."""
    hide = (torch.rand(len(stays), 1, WIDTH) < share).float()
    values, measured, age = reading.course[stays].unbind(1)
    course = torch.stack([values * (1 - hide), measured * (1 - hide), age * (1 - hide) + hide], dim=1)
    return by_step(course, _statics(reading)[stays])


def _helper(samples: Samples, stays: np.ndarray, net: Course) -> tuple[Tensor | None, nn.Linear]:
    """What else is known of the stays, standardised by ``stays``; and a layer to predict it from what is pooled."""
    if samples.other is None:
        return None, nn.Linear(net.head.in_features, 1)
    mine = samples.other[stays]
    known = ~torch.isnan(mine)
    count = known.sum(0).clamp(min=1)
    centre = torch.nan_to_num(mine).sum(0) / count
    scale = (torch.nan_to_num(mine - centre).square().sum(0) / count).sqrt() + 1e-6
    other = (samples.other - centre) / scale
    return other, nn.Linear(net.head.in_features, other.shape[1])


def _squared(answers: Tensor, other: Tensor) -> Tensor:
    known = ~torch.isnan(other)
    return ((answers - torch.nan_to_num(other)).square() * known).mean()


def _loss(logit: Tensor, died: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logit, died)


def _epoch(number: int, losses: list[float], answers: np.ndarray, died: Tensor, member: int) -> Epoch:
    events = died.numpy() > 0
    return Epoch(
        number=number,
        training_loss=float(np.mean(losses)),
        validation_loss=float(_loss(torch.from_numpy(answers), died)),
        auroc=auroc(events, answers) if 0 < events.sum() < len(events) else None,
        member=member,
    )


def fit_ensemble(
    training: Examples,
    validation: Examples,
    chosen: Mapping[str, Any],
    *,
    file: str,
    seed: int,
    device: str,
    report: Told,
) -> Fitted:
    """`Trainable.fit` of the mortality model: one member, with ``chosen["members"]`` networks of the course."""
    both = [
        np.concatenate([getattr(part, name) for part in (training, validation)])
        for name in ("values", "statics", "outcome")
    ]
    samples = samples_of(*both)
    inside, outside = np.split(np.arange(len(samples.died)), [len(training)])
    recipe = Recipe(**{name: value for name, value in chosen.items() if name != "members"})
    member = scaled(samples, inside)
    reading = read(member, samples)
    member.trees = grown(reading, samples.died, inside, recipe, seed)
    for number in range(int(chosen.get("members", 3))):
        member.courses.append(
            fit_course(
                samples,
                reading,
                inside,
                recipe,
                seed + number,
                watched=outside,
                stop_early=True,
                device=device,
                report=report,
                number=number,
            )
        )
    logit = parts_of(member, reading, outside)["joined"]
    ensemble = Ensemble([member])
    slope, intercept = platt(logit, validation.outcome)
    ensemble.platt[:] = torch.tensor([slope, intercept])
    return Fitted(
        tensors={file: {name: tensor.numpy() for name, tensor in ensemble.state_dict().items()}},
        threshold=best_threshold(validation.outcome > 0, expit(slope * logit + intercept)),
    )
