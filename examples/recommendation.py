"""Recommend films: a small recommender is trained, compiled, and asked for every film of a viewer at once."""

from __future__ import annotations

import time

import miaotui
import numpy as np
import torch
from torch import Tensor, nn

FILMS = {
    "Alien": "horror space", "The Shining": "horror", "Gravity": "space drama", "Interstellar": "space drama",
    "Spirited Away": "animation family", "Ratatouille": "animation family comedy", "Up": "animation family",
    "Airplane!": "comedy", "Some Like It Hot": "comedy romance", "Casablanca": "romance drama",
    "In the Mood for Love": "romance drama", "Paddington 2": "family comedy", "Halloween": "horror",
    "2001: A Space Odyssey": "space", "Wall-E": "animation space romance", "Before Sunrise": "romance",
}  # fmt: skip
GENRES = sorted({genre for genres in FILMS.values() for genre in genres.split()})
VIEWERS = 400


class Recommender(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Viewer and film ids, and the viewer's age, into the probability that the film is liked.

    Embeddings, their product, and a small network over all of it: the shape of DLRM.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.viewer, self.film = nn.Embedding(VIEWERS, width), nn.Embedding(len(FILMS), width)
        self.age = nn.Sequential(nn.Linear(1, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(4 * width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, viewer: Tensor, film: Tensor, age: Tensor) -> Tensor:
        """viewer, film: int64[batch]; age: float32[batch, 1] in centuries → float32[batch]."""
        one, other = self.viewer(viewer), self.film(film)
        features = torch.cat([one, other, one * other, self.age(age)], dim=1)
        return torch.sigmoid(self.head(features)).squeeze(1)


def tastes() -> list[set[str]]:
    """The two genres that each viewer likes."""
    random = np.random.default_rng(0)
    return [set(random.choice(GENRES, 2, replace=False)) for _ in range(VIEWERS)]


def trained(viewer: Tensor, film: Tensor, age: Tensor, liked: Tensor) -> Recommender:
    """A recommender fitted to ratings."""
    torch.manual_seed(0)
    module = Recommender()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02, weight_decay=1e-3)
    for _ in range(200):
        loss = nn.functional.binary_cross_entropy(module(viewer, film, age), liked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    return module


def main() -> None:
    """Train on two thirds of all ratings; recommend to a few viewers what they have not rated."""
    taste, random = tastes(), np.random.default_rng(1)
    liked = np.array([[bool(one & set(genres.split())) for genres in FILMS.values()] for one in taste])
    rated = random.random(liked.shape) < 2 / 3
    ages = random.integers(15, 80, (VIEWERS, 1)).astype(np.float32) / 100
    viewer, film = np.nonzero(rated)
    columns = (viewer, film, ages[viewer], liked[rated].astype(np.float32))
    module = trained(*(torch.from_numpy(column) for column in columns))
    ids = torch.arange(4)
    hits, possible = 0, 0
    with miaotui.compile(module, inputs=(ids, ids, torch.rand(4, 1)), timing=1.0) as model:
        start = time.perf_counter()
        for number in range(VIEWERS):
            (new,) = np.nonzero(~rated[number])
            if not len(new):
                continue
            inputs = {"viewer": np.full(len(new), number), "film": new, "age": ages[[number] * len(new)]}
            (scores,) = model.run(inputs).values()
            best = new[np.argsort(-scores)[:2]]
            hits += int(liked[number, best].sum())
            possible += min(2, int(liked[number, new].sum()))
            if number < 6:
                genres, films = " and ".join(sorted(taste[number])), ", ".join(list(FILMS)[f] for f in best)
                print(f"a viewer who likes {genres}: {films}")
        seconds = time.perf_counter() - start
    print(
        f"\n{hits} films they like found, of {possible} possible; {seconds / VIEWERS * 1e6:.0f} µs a viewer"
    )


if __name__ == "__main__":
    main()
