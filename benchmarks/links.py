"""What chips of a pod take to talk, and what that leaves of a step: a ring model, no measurement.

A chip has as many links as its torus has directions: two for each axis. Google's pages give the sum
of all links of a chip in both directions (`docs.cloud.google.com/tpu/docs/v5e`, ``/v5p``, ``/v6e``,
read in November 2026): 400 GB/s of v5e (4 ports), 1,200 GB/s of v5p (6), and for v6e 3,200 Gbps one
way (4 ports), twice v5e's 1,600 on the same page. One link so carries 50, 100 and 100 GB/s each
way.

An axis of a slice is closed to a ring, which gives a collective both directions, where it has 16
chips (v5e, v6e) or a multiple of 4 (v5p, by optical switches); on an open axis the chip at its end
has one link, and all wait for it. A group of chips works along each axis that it extends over, at
the same time; where it takes every k-th chip of an axis, k such groups share the links. Bytes that
one chip receives, of n, with the result's bytes B: all-gather (n - 1) / n B, reduce-scatter the
same of what goes in, all-reduce both. Time is that over the links' bytes a second.

Between slices a chip has its share of the hosts' network, which the same pages give by host or pod:
2 x 100 Gbps for 8 chips of v5e, 50 Gbps a chip of v5p, 4 x 200 Gbps for 8 chips of v6e.

Left out: latency (about a microsecond a hop, so small collectives are not free), the links'
attainable share of their rating, other traffic, twisted tori, stragglers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import hlo

type Place = tuple[int, ...]
"""Where a chip is in its slice's torus."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What connects the chips of a kind.

    Attributes:
      link: byte/s of one link, one way.
      closed: chips of an axis that make it a ring, or whole multiples of that.
      between: byte/s of one chip to other slices, one way.
    """

    link: float
    closed: int
    between: float

    def is_ring(self, length: int) -> bool:
        """Returns whether an axis of so many chips is closed."""
        return length % self.closed == 0


NETWORKS = {
    "TPU v5 lite": Network(link=50e9, closed=16, between=25e9 / 8),
    "TPU v5": Network(link=100e9, closed=4, between=50e9 / 8),
    "TPU v6 lite": Network(link=100e9, closed=16, between=100e9 / 8),
}
"""By ``device_kind``, as `machine.RATINGS`."""

ATTAINABLE = 0.6
"""Assumed share of the rating that matrix products reach where nothing else holds them up."""


def torus(places: Iterable[Place]) -> Place:
    """Returns how many chips each axis of a slice has."""
    return tuple(1 + max(along) for along in zip(*places, strict=True))


def usable_links(group: Sequence[Place], shape: Place, network: Network) -> float:
    """Returns how many links a group of chips has to itself for receiving, each chip of it.

    Args:
      group: where its chips are.
      shape: of the slice's torus.
      network: of the chips.

    Raises:
      ValueError: the group is no grid of chips, for which this model has nothing to say.
    """
    positions = [sorted(set(along)) for along in zip(*group, strict=True)]
    if math.prod(map(len, positions)) != len(group):
        raise ValueError(f"{len(group)} chips that are no grid along the torus: {sorted(group)}")
    links = 0.0
    for along, length in zip(positions, shape, strict=True):
        if len(along) == 1:
            continue
        stride = max(b - a for a, b in zip(along, along[1:]))
        both = stride * len(along) == length and network.is_ring(length)
        links += (2 if both else 1) / stride
    return links


def received(kind: str, size: int, devices: int) -> float:
    """Returns the bytes that each device of a ring receives for one collective.

    Args:
      kind: one of `hlo.KINDS`, or `hlo.BETWEEN_SLICES`, a sum over slices.
      size: bytes of the result on a device.
      devices: of the ring.
    """
    others = devices - 1
    if kind == "reduce-scatter":
        return others * size
    if kind in ("all-reduce", hlo.BETWEEN_SLICES):
        return 2 * others / devices * size
    return float(size) if kind == "collective-permute" else others / devices * size


def seconds(
    one: hlo.Communication, places: Sequence[Sequence[int]], slices: Sequence[int], network: Network
) -> float:
    """Returns the projected time of all calls of a communication.

    Args:
      one: from the program.
      places: where each device of the mesh is in its slice, in the program's order.
      slices: the slice of each.
      network: of the chips.
    """
    if one.kind == hlo.BETWEEN_SLICES:
        moved = received(one.kind, one.bytes, len(set(slices)))
        return one.calls * moved / network.between
    within = [tuple(place) for place, number in zip(places, slices, strict=True) if number == 0]
    # What goes from chip to chip takes one link. So does a program that names no group.
    if one.kind == "collective-permute":
        return one.calls * one.bytes / network.link
    group = [within[i] for i in one.group] or within
    if len(group) == 1:
        return 0.0
    speed = network.link * usable_links(group, torus(within), network)
    return one.calls * received(one.kind, one.bytes, len(group)) / speed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A step as the model has it, in seconds.

    Attributes:
      arithmetic: executed FLOPs over `ATTAINABLE` of the rating.
      memory: bytes over the memory's rating.
      overlapped: communication that the program starts and goes on.
      exposed: communication that it waits for.
    """

    arithmetic: float
    memory: float
    overlapped: float
    exposed: float

    @property
    def compute(self) -> float:
        """What one chip takes: arithmetic or memory, whichever is longer."""
        return max(self.arithmetic, self.memory)

    @property
    def total(self) -> float:
        """What a step takes: overlapped communication is free as long as it is shorter."""
        return max(self.compute, self.overlapped) + self.exposed

    @property
    def efficiency(self) -> float:
        """Share of the time of a step in which a chip does what one alone would."""
        return self.compute / self.total

    @property
    def least_efficiency(self) -> float:
        """The same if chips did their arithmetic at the full rating, with no wait for memory."""
        fastest = ATTAINABLE * self.arithmetic
        return fastest / (max(fastest, self.overlapped) + self.exposed)
