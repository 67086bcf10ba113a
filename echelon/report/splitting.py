"""The part of a report about split training: what devices and edges sent each other, clusters, and trust over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from echelon.report import formatting as words
from echelon.report.components import pair, panel, section
from echelon.report.data import Encodings, SplitTraffic, StandingsLine
from echelon.report.pacing import TIME, binned, chart
from echelon.report.svg import Axis, Series
from echelon.report.templates import fill, joined

FULL = 1_000_000
"""Trust is in millionths."""


STREAMS = {
    "up.hidden": "activations, up",
    "down.hidden": "activations, down",
    "up.gradient": "gradients, up",
    "down.gradient": "gradients, down",
}


def split_training(
    traffic: Sequence[SplitTraffic],
    encodings: Sequence[Encodings],
    standings: Sequence[StandingsLine],
    colours: Mapping[str, int],
) -> Markup:
    """Traffic by direction, chosen encodings, trust over time and the newest clusters; nothing if it was not split.

    Args:
        traffic: bytes so far, by boundary and direction.
        encodings: what each device's streams were encoded by.
        standings: clusters and trust, as the aggregators said them.
        colours: number in the palette, by boundary.
    """
    if not traffic and not standings and not encodings:
        return Markup("")
    directions: list[Series] = []
    for direction, dashed in (("up", False), ("down", True)):
        for name in sorted({line.boundary for line in traffic}):
            points = [(line.t, float(getattr(line, direction))) for line in traffic if line.boundary == name]
            colour = colours.get(name, -1)
            directions.append(Series(f"{name}, {direction}", binned(points), colour, dashed=dashed))
    least: list[Series] = []
    for name in sorted({line.boundary for line in standings}):
        mine = [line for line in standings if line.boundary == name and line.trust]
        points = [(line.t, min(line.trust.values()) / FULL) for line in mine]
        least.append(Series(name, binned(points), colours.get(name, -1)))
    size = Axis("sealed activations and gradients so far", words.size, low=0)
    trust = Axis("trust of the least trusted device", lambda v: f"{v:.2f}", low=0, high=1)
    newest = {line.boundary: line for line in standings}
    return section(
        "Split training",
        "Devices hold the first and last blocks of the model, edges of their boundary those between. None of this left "
        "a boundary. Devices of one cluster behave alike on public probes.",
        pair(
            [
                chart(
                    directions,
                    TIME,
                    size,
                    title="Traffic between devices and edges",
                    empty="Nothing was sent.",
                ),
                chart(least, TIME, trust, title="Trust", empty="Devices were not probed."),
            ]
        )
        + _encodings(encodings)
        + joined(_clusters(newest[name]) for name in sorted(newest)),
    )


def _encodings(lines: Sequence[Encodings]) -> Markup:
    """What devices and edges chose in the end, devices that chose alike in one row."""
    newest = {line.device: line.streams for line in lines}
    alike: dict[tuple[str, ...], list[str]] = {}
    for device, streams in sorted(newest.items()):
        alike.setdefault(tuple(streams.get(stream, "as set") for stream in STREAMS), []).append(device)
    if not alike:
        return Markup("")
    rows = [(", ".join(devices), *chosen) for chosen, devices in alike.items()]
    table = fill("run.html", "table", head=("devices", *STREAMS.values()), rows=rows)
    return panel(table, title="Encodings, chosen by what they lose")


def _clusters(line: StandingsLine) -> Markup:
    """A boundary's clusters as boxes of devices; who is kept out is marked."""
    boxes = []
    for label in sorted(set(line.clusters.values())):
        members = [
            {"text": f"{device} {line.trust.get(device, FULL) / FULL:.2f}", "out": device in line.out}
            for device in sorted(line.clusters)
            if line.clusters[device] == label
        ]
        boxes.append({"name": f"{line.boundary}, cluster {label}", "members": members})
    return fill("run.html", "clusters", boxes=boxes)
