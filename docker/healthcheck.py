"""Asks a service in this container whether it is well, for docker: exit 0 when it answers 200, 1 otherwise.

`healthcheck.py livez` (the process is at work) or `healthcheck.py readyz` (and every broker is connected). The port is
the one of the service's configuration, which ECHELON_HTTP__PORT overrides there as here.
"""

from __future__ import annotations

import http.client
import os
import sys

DEFAULT_PORT = 9464
TIMEOUT = 12.0
"""Seconds; docker's own limit, 15, has to hold for the start of Python as well."""
MAX_ANSWER_BYTES = 65536


def main(arguments: list[str]) -> int:
    """Print what the service says; the exit status docker takes."""
    if len(arguments) != 1 or arguments[0] not in {"livez", "readyz"}:
        print("usage: healthcheck.py livez|readyz", file=sys.stderr)
        return 1
    port = os.environ.get("ECHELON_HTTP__PORT", str(DEFAULT_PORT))
    if not port.isdigit():
        print(f"ECHELON_HTTP__PORT={port} is not a port", file=sys.stderr)
        return 1
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=TIMEOUT)
    try:
        connection.request("GET", f"/{arguments[0]}")
        answer = connection.getresponse()
        print(answer.status, answer.read(MAX_ANSWER_BYTES).decode("utf-8", "replace"))
        return 0 if answer.status == 200 else 1
    except (OSError, http.client.HTTPException) as error:
        print(f"port {port}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
