"""Where a federation's brokers are, as its services will read it."""

from __future__ import annotations

from pathlib import Path

from echelon.bus.kafka_url import check_kafka
from echelon.config.run import RunSettings
from echelon.errors import ConfigError
from echelon.preflight.findings import RunFault
from echelon.provision.broker_map import EXCHANGE, BrokerMap, load_brokers

BROKERS = "brokers"


def check_brokers(settings: RunSettings, path: Path, faults: list[RunFault]) -> dict[str, str]:
    """Read a broker map and hold it against a run file.

    Args:
        settings: the run file.
        path: the broker map.
        faults: takes what is wrong.

    Returns:
        The address of each broker; nothing for a map that cannot be read.
    """
    try:
        known = load_brokers(path)
    except ConfigError as error:
        faults.append(RunFault(BROKERS, str(error)))
        return {}
    faults += [RunFault(BROKERS, sentence) for sentence in wrong_addresses(known)]
    boundaries = [boundary.name for boundary in settings.boundaries]
    absent = [name for name in boundaries if name not in known.boundaries]
    more = [name for name in known.boundaries if name not in boundaries]
    if absent:
        faults.append(
            RunFault(BROKERS, f"{path} has no broker of {', '.join(absent)}: add it under boundaries")
        )
    if more:
        faults.append(
            RunFault(BROKERS, f"{path} names {', '.join(more)}, which the run file does not: leave it out")
        )
    return {name: entry.url for name, entry in known.entries.items()}


def wrong_addresses(known: BrokerMap) -> list[str]:
    """What services would refuse of the addresses of a broker map, a sentence each."""
    found = []
    for name, entry in known.entries.items():
        for setting, url in (("url", entry.url), ("scram_url", entry.scram_url)):
            if url is None or not url.startswith("kafka://"):
                continue
            place = name if name == EXCHANGE else f"boundaries.{name}"
            try:
                check_kafka(url, secured=entry.ca is not None)
            except ConfigError as error:
                found.append(f"{place}.{setting}: {error}")
    return found
