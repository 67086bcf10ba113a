"""A cluster by hand: `python -m tests.cluster build | start | stop`.

`build` builds the programs; `start` starts a cluster that stays, and prints what to put before kubectl; `stop` ends it.
"""

from __future__ import annotations

import sys

from tests.cluster import binaries
from tests.cluster.cluster import NETWORK, Cluster, place
from tests.containers import engine


def main(words: list[str]) -> int:
    """See the module."""
    if len(words) != 1 or words[0] not in ("build", "start", "stop"):
        print("usage: python -m tests.cluster build | start | stop", file=sys.stderr)
        return 2
    try:
        if words[0] == "build":
            print(binaries.build(place()))
            return 0
        cluster = Cluster(place(), engine.start())
        if words[0] == "stop":
            cluster.stop()
        else:
            cluster.start()
            print(
                f"KUBECONFIG={cluster.configuration} nsenter --net=/run/netns/{NETWORK} {cluster.programs}/kubectl"
            )
    except engine.NoEngine as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
