"""An engine with images, by hand: `python -m tests.containers start | bases | image | stop`.

`start` prints what to put before docker's own commands; `bases` makes the base images that are missing; `image` builds
ours; `stop` ends the daemon that `start` has started. Each does what comes before it.
"""

from __future__ import annotations

import sys

from tests.containers import base_images, engine
from tests.containers.stack import build_image


def main(words: list[str]) -> int:
    """See the module."""
    steps = ("start", "bases", "image", "stop")
    if len(words) != 1 or words[0] not in steps:
        print(f"usage: python -m tests.containers {' | '.join(steps)}", file=sys.stderr)
        return 2
    if words[0] == "stop":
        engine.stop()
        return 0
    try:
        found = engine.start()
        print(f"DOCKER_HOST={found.environment.get('DOCKER_HOST', '')}")
        if words[0] in {"bases", "image"}:
            print(base_images.build(found))
        if words[0] == "image":
            print(f"built in {build_image(found):.0f} s")
    except engine.NoEngine as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
