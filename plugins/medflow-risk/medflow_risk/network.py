"""The networks: a recurrent one over the course of the stay, and beside it trees over a summary, in one logit.

What is learnt from data, the scales of the inputs included, is in the state dict of each member, so that the members of
a fold know nothing of the patients they were not shown. Every part has gradients: even the trees, whose edges are soft.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from medflow_risk.channels import STATICS
from medflow_risk.features import COLUMNS, STEPS, WIDTH

Core = Literal["lstm", "gru", "transformer"]
CORES: tuple[Core, ...] = ("lstm", "gru", "transformer")
CLIP = 4.0  # standard deviations
DEPTH = 3  # of a tree
TREES_AT_ONCE = 200  # what they need stays in the processor's cache
EDGE = 0.1  # normal scores over which a split of a tree turns
SHARES = {"course": 0.3, "trees": 0.7}  # of the logit
HEADS = 4  # of the transformer's attention


class Reading(NamedTuple):
    """What one member reads of a batch, on its own scales.

    ``course`` (batch, 3, steps, channels): values, whether measured, time since. ``scores`` (batch, columns): each
    column of the summary as a normal score, 0 where it is unknown. ``known`` (batch, columns): 1 or 0.
    """

    course: Tensor
    scores: Tensor
    known: Tensor


def by_step(course: Tensor, statics: Tensor) -> Tensor:
    """What a `Course` reads, (batch, steps, all): of (batch, 3, steps, channels) and of statics (batch, statics)."""
    flat = course.transpose(1, 2).flatten(2)
    return torch.cat([flat, statics[:, None].expand(-1, flat.shape[1], -1)], dim=2)


class Course(nn.Module):
    """The stay over time: a recurrent network or a transformer, and attention over what it makes of each step."""

    def __init__(self, core: Core = "lstm", hidden: int = 40, dropout: float = 0.4) -> None:
        super().__init__()
        self.core: Core = core
        self.drop_in = nn.Dropout(dropout / 2)
        self.inward = nn.Linear(3 * WIDTH + len(STATICS), hidden)
        if core == "transformer":
            self.places = nn.Parameter(torch.randn(STEPS, hidden) * 0.02)
            layer = nn.TransformerEncoderLayer(
                hidden, HEADS, 2 * hidden, dropout, batch_first=True, norm_first=True, activation="gelu"
            )
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        else:
            kind = nn.LSTM if core == "lstm" else nn.GRU
            self.recurrent = kind(hidden, hidden, batch_first=True, bidirectional=True)
        width = hidden if core == "transformer" else 2 * hidden
        self.attention = nn.Linear(width, 1)
        self.drop_out = nn.Dropout(dropout)
        self.head = nn.Linear(3 * width, 1)

    @staticmethod
    def choices_of(tensors: dict[str, Tensor]) -> tuple[Core, int]:
        """Core and width of the network that these tensors are of, by their names without prefix."""
        hidden = tensors["inward.weight"].shape[0]
        if "places" in tensors:
            return "transformer", hidden
        gates = tensors["recurrent.weight_hh_l0"].shape[0] // hidden
        return ("lstm" if gates == 4 else "gru"), hidden

    def pooled(self, steps: Tensor) -> Tensor:
        """What the stay comes to, before the head: (batch, 3 * width); ``steps`` as `by_step` makes them."""
        inward = self.inward(self.drop_in(steps))
        if self.core == "transformer":
            states = self.encoder(inward + self.places)
        else:
            states, _ = self.recurrent(torch.tanh(inward))
        weight = torch.softmax(self.attention(states), dim=1)
        return self.drop_out(torch.cat([(weight * states).sum(1), states.mean(1), states.amax(1)], dim=1))

    def forward(self, steps: Tensor) -> Tensor:
        """Logits (batch,)."""
        return self.head(self.pooled(steps))[:, 0]


class Trees(nn.Module):
    """Boosted trees of DEPTH levels over normal scores, each split turning over EDGE instead of at once.

    ``feature``, ``threshold`` and ``unknown`` (the way of an unknown value: 1 right) are (trees, splits), the root
    first and then level by level; ``leaf`` (trees, splits + 1) from left to right.
    """

    feature: Tensor
    threshold: Tensor
    unknown: Tensor
    leaf: Tensor

    def __init__(self, trees: int) -> None:
        super().__init__()
        splits = 2**DEPTH - 1
        self.register_buffer("feature", torch.zeros(trees, splits, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(trees, splits))
        self.register_buffer("unknown", torch.zeros(trees, splits))
        self.register_buffer("leaf", torch.zeros(trees, splits + 1))

    def forward(self, scores: Tensor, known: Tensor) -> Tensor:
        """Logits (batch,)."""
        columns, there = scores.T.contiguous(), known.T.contiguous()
        logit = scores.new_zeros(len(scores))
        for part in torch.arange(len(self.leaf), device=scores.device).split(TREES_AT_ONCE):
            column = self.feature[part].flatten().long()
            turned = torch.sigmoid((columns[column] - self.threshold[part].flatten()[:, None]) / EDGE)
            right = torch.lerp(self.unknown[part].flatten()[:, None], turned, there[column])
            right = right.unflatten(0, (len(part), -1))
            value = self.leaf[part][..., None]
            for level in reversed(range(DEPTH)):  # from the leaves to the root
                turn = right[:, 2**level - 1 : 2 ** (level + 1) - 1]
                value = torch.lerp(value[:, 0::2], value[:, 1::2], turn)
            logit = logit + value.sum((0, 1))
        return logit


class Member(nn.Module):
    """Networks of the course and trees, all of the same training stays, joined in one logit."""

    mean: Tensor
    scale: Tensor
    knots: Tensor
    normal: Tensor

    def __init__(self, courses: list[Course], *, knots: int, trees: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("scale", torch.ones(WIDTH))
        self.register_buffer("knots", torch.zeros(len(COLUMNS), knots))
        self.register_buffer("normal", torch.zeros(len(COLUMNS), knots))
        self.trees = Trees(trees)
        self.courses = nn.ModuleList(courses)

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Member:
        """The member whose tensors these are."""
        courses = [Course(*Course.choices_of(part)) for part in _numbered(tensors, "courses.")]
        member = cls(courses, knots=tensors["knots"].shape[1], trees=len(tensors["trees.leaf"]))
        member.load_state_dict(tensors)
        return member

    def read(self, sequence: Tensor, summary: Tensor) -> Reading:
        """``sequence`` (batch, 3, steps, channels) and ``summary`` (batch, columns) as `features` makes them."""
        filled, measured, age = sequence.unbind(1)
        values = torch.nan_to_num((filled - self.mean) / self.scale).clamp(-CLIP, CLIP)
        known = ~torch.isnan(summary)
        return Reading(torch.stack([values, measured, age], dim=1), self._normal(summary) * known, known.float())

    def _normal(self, summary: Tensor) -> Tensor:
        """Normal scores, by linear interpolation between the knots; anything finite where a column is unknown."""
        columns = torch.nan_to_num(summary).T.contiguous()
        right = torch.searchsorted(self.knots, columns).clamp(1, self.knots.shape[1] - 1)
        low, high = self.knots.gather(1, right - 1), self.knots.gather(1, right)
        share = ((columns - low) / (high - low)).clamp(0, 1)
        start = self.normal.gather(1, right - 1)
        return (start + share * (self.normal.gather(1, right) - start)).T

    def parts(self, reading: Reading) -> dict[str, Tensor]:
        """The logits (batch,) of the networks of the course (their mean) and of the trees."""
        course, scores, known = reading
        steps = by_step(course, scores[:, -len(STATICS) :])
        return {
            "course": torch.stack([net(steps) for net in self.courses]).mean(0),
            "trees": self.trees(scores, known),
        }

    def forward(self, course: Tensor, scores: Tensor, known: Tensor) -> Tensor:
        """Logits (batch,) of a `Reading`."""
        parts = self.parts(Reading(course, scores, known))
        return torch.stack([share * parts[name] for name, share in SHARES.items()]).sum(0)


class Ensemble(nn.Module):
    """The mean logit of several members, calibrated (Platt) to a probability."""

    platt: Tensor

    def __init__(self, members: list[Member]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("platt", torch.tensor([1.0, 0.0]))  # slope, intercept

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Ensemble:
        """The ensemble that a state dict describes, of any core and size, ready for use."""
        ensemble = cls([Member.of(part) for part in _numbered(tensors, "members.")])
        ensemble.load_state_dict(tensors)
        return ensemble.eval()

    @property
    def each(self) -> list[Member]:
        """The members."""
        return cast(list[Member], list(self.members))

    def forward(self, sequence: Tensor, summary: Tensor) -> Tensor:
        """Probabilities (batch,); inputs as `Member.read`."""
        logit = torch.stack([member(*member.read(sequence, summary)) for member in self.each]).mean(0)
        return torch.sigmoid(self.platt[0] * logit + self.platt[1])


def _numbered(tensors: dict[str, Tensor], prefix: str) -> list[dict[str, Tensor]]:
    """The tensors of each item of a `ModuleList`, in its order, by their names within the item."""
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            parts.setdefault(int(number), {})[rest] = tensor
    return [parts[number] for number in sorted(parts)]
