"""The network: a convolution finds motifs, self-attention relates them, positions stay apart up to the last layer.

Where a motif lies relative to the middle is what makes a splice site, so nothing is pooled over positions. Several
members, trained from different seeds, vote with the mean of their log-probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medflow.inference.weights import load_weights
from medflow.plugin import Weights
from medflow_genomics.encoding import ALPHABET, CLASSES, LENGTH

MEMBERS = 3
WIDTH = 32
HEADS = 4
KERNEL = 7  # bases that the first convolution sees
NARROW = 12


class Member(nn.Module):
    """One network: (batch, 60) int64 base numbers to (batch, 3) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.motifs = nn.Conv1d(len(ALPHABET), WIDTH, KERNEL, padding=KERNEL // 2)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.narrow = nn.Conv1d(WIDTH, NARROW, 5, padding=2)
        self.head = nn.Linear(LENGTH * NARROW, len(CLASSES))
        self.dropout = nn.Dropout(0.4)

    def forward(self, bases: Tensor) -> Tensor:
        """Logits of a batch."""
        onehot = functional.one_hot(bases, len(ALPHABET)).to(self.position.dtype)
        found = torch.relu(self.motifs(onehot.transpose(1, 2))).transpose(1, 2) + self.position
        related = self.dropout(self.norm(found + self.attention(found, found, found, need_weights=False)[0]))
        placed = torch.relu(self.narrow(related.transpose(1, 2))).flatten(1)
        return self.head(self.dropout(placed))


class Ensemble(nn.Module):
    """Several members: (batch, 60) base numbers to (batch, 3) class probabilities."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(Member() for _ in range(members))

    def votes(self, bases: Tensor) -> Tensor:
        """What the members agree on: log-probabilities up to a constant, (batch, 3)."""
        return torch.stack([member(bases).log_softmax(1) for member in self.members]).mean(0)

    def forward(self, bases: Tensor) -> Tensor:
        """Probabilities of a batch."""
        return self.votes(bases).softmax(1)


def trained(weights: Weights, device: str) -> Ensemble:
    """The ensemble with the weights that the package holds, ready to answer, on ``device``."""
    ensemble = Ensemble(MEMBERS)
    ensemble.load_state_dict(load_weights("medflow_genomics", weights))
    return ensemble.eval().to(device)
