"""Which rows come next: mixtures of sources, batches of like length or of one source, cut exactly over ranks.

All of it is a function of the settings, the seed and the epoch alone. So a run goes on in mid-epoch without any state,
and the order of rows does not depend on how many ranks share them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

NONE, PROPORTIONAL, TEMPERATURE, BALANCED, ANNEALED = "none", "proportional", "temperature", "balanced", "annealed"
MIXTURES = (NONE, PROPORTIONAL, f"{TEMPERATURE}:<T>", BALANCED, ANNEALED)

# Batches among which rows are sorted by length: many give little padding, few leave more to chance.
_MEGABATCH = 50

# Keep the random orders of an epoch and those of a source apart.
_OF_EPOCHS, _OF_SOURCES = 1, 2

Steps = list[list[list[int]]]


@dataclass(frozen=True)
class Mixture:
    """How the rows of an epoch are shared out among sources: in proportion to n^alpha, of a source with n rows.

    `proportional` is alpha = 1, `temperature:<T>` alpha = 1/T, `balanced` alpha = 0. `annealed` goes from 1 in the
    first epoch to 0.2 in the last: alpha = 1 - 0.8 (e - 1) / (E - 1) in epoch e of E (Stickland and Murray, "BERT and
    PALs", ICML 2019). `none` takes no heed of sources.

    Args:
        kind: One of the names above.
        temperature: T of `temperature`.
    """

    kind: str = NONE
    temperature: float = 1.0

    @classmethod
    def parse(cls, setting: str) -> "Mixture":
        """Reads the setting `mixture`.

        Raises:
            ValueError: If there is no such mixture, or T is not a number above 0.
        """
        kind, colon, value = str(setting).partition(":")
        if kind == TEMPERATURE:
            try:
                temperature = float(value)
            except ValueError:
                temperature = math.nan
            if not (math.isfinite(temperature) and temperature > 0):
                raise ValueError(f"mixture {setting!r}: T must be a number above 0. Write e.g. 'temperature:2'.")
            return cls(kind, temperature)
        if colon or kind not in MIXTURES:
            raise ValueError(f"mixture {setting!r} is unknown. Use one of {', '.join(MIXTURES)}.")
        return cls(kind)

    def alpha(self, epoch: int, num_epochs: int) -> float:
        """Returns the exponent of an epoch, counted from 0."""
        if self.kind == ANNEALED:
            return 1.0 - 0.8 * min(epoch, num_epochs - 1) / max(num_epochs - 1, 1)
        return {TEMPERATURE: 1.0 / self.temperature, BALANCED: 0.0}.get(self.kind, 1.0)


def share_out(sizes: Sequence[int], alpha: float, total: int) -> list[int]:
    """Shares `total` rows out in proportion to size^alpha, by largest remainder; of equal remainders the first wins.

    Args:
        sizes: Rows of each source, each above 0.
        alpha: The exponent.
        total: Rows to share out.

    Returns:
        A whole number for each source; their sum is `total`.
    """
    weights = (np.asarray(sizes) / max(sizes)) ** alpha  # (sources,); a large alpha would overflow with the sizes.
    exact = total * weights / weights.sum()  # (sources,)
    quotas = np.floor(exact).astype(np.int64)
    # Rounded, so that float noise does not decide between equal remainders.
    first = np.argsort(-np.round(exact - quotas, 9), kind="stable")
    quotas[first[: total - int(quotas.sum())]] += 1
    return [int(quota) for quota in quotas]


def drawn(rows: np.ndarray, start: int, count: int, seed: Sequence[int]) -> np.ndarray:
    """Returns draws `start` to `start + count` of a source: its rows without replacement, in a new order each cycle.

    Args:
        rows: The source's rows, (N,).
        start: Draws before.
        count: Draws wanted.
        seed: Seed of the source's orders.
    """
    if not count:
        return rows[:0]
    cycles = range(start // len(rows), (start + count - 1) // len(rows) + 1)
    orders = [np.random.default_rng([*seed, cycle]).permutation(rows) for cycle in cycles]
    skipped = start - cycles[0] * len(rows)
    return np.concatenate(orders)[skipped : skipped + count]  # (count,)


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """The rows of every step of every epoch, for every rank.

    An epoch has as many rows as the data, whatever the mixture, and each epoch as many steps as the others. A source's
    rows are drawn without replacement, going on through the epochs: up to the end of any epoch two rows of a source
    have been seen equally often, or one of them once more. Ranks get nearly equal parts of a global batch; their
    numbers of rows may differ by one, and no row is repeated to even them out. What is left in the end, if fewer than
    the ranks, joins the batch before.

    Args:
        sources: The numbers of each source's rows, by its name.
        batch_rows: Rows of a global batch, which is what all ranks compute at once.
        mixture: How sources share an epoch.
        world_size: Number of ranks.
        accumulation: Global batches of an optimizer step.
        num_epochs: Number of epochs, which `annealed` needs.
        seed: Seed of every order.
        shuffle: Whether `none` shuffles; if not, rows come in the order of their numbers.
        lengths: Length of each row in tokens, (rows,); batches then hold rows of like length.
        homogeneous: Whether a batch holds rows of one source only.

    Raises:
        ValueError: If an epoch has fewer rows, in all or of a source with batches of its own, than there are ranks.
    """

    sources: Mapping[str, np.ndarray]
    batch_rows: int
    mixture: Mixture = field(default_factory=Mixture)
    world_size: int = 1
    accumulation: int = 1
    num_epochs: int = 1
    seed: int = 0
    shuffle: bool = True
    lengths: np.ndarray | None = None
    homogeneous: bool = False

    def __post_init__(self) -> None:
        """Checks that every rank has a row in every step."""
        if self.num_rows < self.world_size:
            raise ValueError(
                f"The training data has {self.num_rows} rows, fewer than the {self.world_size} processes. Start fewer."
            )
        if self.homogeneous:
            for epoch in self._distinct_epochs:
                for name, quota in self.quotas(epoch).items():
                    if 0 < quota < self.world_size:
                        raise ValueError(
                            f"homogeneous_batches: source {name!r} has {quota} rows in epoch {epoch + 1}, fewer than "
                            f"the {self.world_size} processes. Start fewer, or choose a mixture that gives it more."
                        )
                self._batches_by_source(epoch)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return sum(map(len, self.sources.values()))

    @property
    def _distinct_epochs(self) -> range:
        return range(self.num_epochs if self.mixture.kind == ANNEALED else 1)

    def quotas(self, epoch: int) -> dict[str, int]:
        """Returns how many rows of each source an epoch has."""
        sizes = [len(rows) for rows in self.sources.values()]
        shared = share_out(sizes, self.mixture.alpha(epoch, self.num_epochs), self.num_rows)
        return dict(zip(self.sources, shared, strict=True))

    def __len__(self) -> int:
        """Returns the number of global batches of an epoch, the same in every epoch."""
        return self._num_batches

    @cached_property
    def _num_batches(self) -> int:
        if self.homogeneous:
            return max(sum(self._fewest_batches(epoch)) for epoch in self._distinct_epochs)
        full, rest = divmod(self.num_rows, self.batch_rows)
        return full + (rest >= self.world_size or not full)

    def steps(self, epoch: int) -> Steps:
        """Returns the rows of an epoch, counted from 0: for each global batch, those of each rank."""
        batches = self._batches_of_one_source(epoch) if self.homogeneous else self._mixed_batches(epoch)
        return [[part.tolist() for part in np.array_split(batch, self.world_size)] for batch in batches]

    def _drawn(self, epoch: int) -> list[np.ndarray]:
        quotas = self.quotas(epoch)
        before = {name: epoch * quota for name, quota in quotas.items()}
        if self.mixture.kind == ANNEALED:
            earlier = [self.quotas(number) for number in range(epoch)]
            before = {name: sum(some[name] for some in earlier) for name in quotas}
        return [
            drawn(rows, before[name], quotas[name], (self.seed, _OF_SOURCES, place))
            for place, (name, rows) in enumerate(self.sources.items())
        ]

    def _mixed_batches(self, epoch: int) -> list[np.ndarray]:
        chance = np.random.default_rng([self.seed, _OF_EPOCHS, epoch])
        if self.mixture.kind == NONE:
            rows = self._plain_order(epoch)
        else:
            rows = chance.permutation(np.concatenate(self._drawn(epoch)))
        step_rows = self.batch_rows * self.accumulation
        sizes = [step_rows] * (len(rows) // step_rows)
        if self.lengths is not None:
            steps = self._grouped_by_length(rows, [*sizes, len(rows) % step_rows])
            full = self._in_random_order(steps[:-1], chance)
            rows = np.concatenate([*full, steps[-1]])  # The short one stays last.
        ends = list(range(self.batch_rows, len(rows), self.batch_rows))[: len(self) - 1]
        return np.split(rows, ends)

    def _plain_order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_rows)
        # What accelerate's sampler gives one process, so that one and several see the same batches.
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(self.num_rows, generator=generator).numpy()

    def _batches_of_one_source(self, epoch: int) -> list[np.ndarray]:
        chance = np.random.default_rng([self.seed, _OF_EPOCHS, epoch])
        batches = []
        for rows, count in zip(self._drawn(epoch), self._batches_by_source(epoch), strict=True):
            if count:
                sizes = [len(part) for part in np.array_split(rows, count)]
                batches += self._grouped_by_length(chance.permutation(rows), sizes)
        return self._in_random_order(batches, chance)

    def _fewest_batches(self, epoch: int) -> list[int]:
        quotas = self.quotas(epoch).values()
        return [min(math.ceil(quota / self.batch_rows), quota // self.world_size) for quota in quotas]

    def _batches_by_source(self, epoch: int) -> list[int]:
        """Returns the count of batches of each source; where quotas need fewer than in other epochs, smaller ones."""
        counts, quotas = self._fewest_batches(epoch), list(self.quotas(epoch).values())
        for _ in range(len(self) - sum(counts)):
            able = [place for place, quota in enumerate(quotas) if quota // (counts[place] + 1) >= self.world_size]
            if not able:
                raise ValueError(
                    f"homogeneous_batches: epoch {epoch + 1} cannot be cut into as many batches as other epochs. Set "
                    "a larger per_device_train_batch_size."
                )
            counts[max(able, key=lambda place: quotas[place] / max(counts[place], 1))] += 1
        return counts

    def _grouped_by_length(self, rows: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
        """Cuts rows to sizes, after sorting them by length, longest first, within some batches at a time."""
        ends = np.cumsum(sizes)
        if self.lengths is not None:
            # As many parts as to leave something to chance in small data, too.
            batches = min(max(len(sizes) // 4, 1), _MEGABATCH)
            parts = np.split(rows, ends[batches - 1 : -1 : batches])
            rows = np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in parts])
        return np.split(rows, ends[:-1])

    def _in_random_order(self, batches: list[np.ndarray], chance: np.random.Generator) -> list[np.ndarray]:
        batches = [batches[place] for place in chance.permutation(len(batches))]
        lengths = self.lengths
        if lengths is not None and batches:
            # The longest row comes first, so that what does not fit into memory is told at once.
            longest = max(range(len(batches)), key=lambda place: lengths[batches[place]].max(initial=0))
            batches[0], batches[longest] = batches[longest], batches[0]
        return batches
