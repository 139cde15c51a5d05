"""Follow the events over plain HTTP, without loss if the connection breaks. Standard library only.

    aima up                                     # in another terminal
    python examples/events.py --since 10m --type 'service.*'

Events are sent as server-sent events. Each has an id; a client that sends the last id gets the events after it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

AGAIN = 1.0  # seconds until a broken connection is opened again


def events(url: str, since: str, types: list[str]) -> Iterator[dict[str, Any]]:
    """Yield events for ever: those since a time, then each as it happens."""
    last = ""
    while True:
        asked = [("type", each) for each in types] + ([] if last else [("since", since)])
        request = Request(f"{url}/api/v2/events?{urlencode(asked)}")
        if last:
            request.add_header("Last-Event-ID", last)
        if key := os.environ.get("AIMA_API_KEY"):
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urlopen(request) as lines:
                for line in lines:
                    field, _, value = line.decode().rstrip("\n").partition(": ")
                    if field == "id":
                        last = value
                    elif field == "data":
                        yield json.loads(value)
        except HTTPError as refused:
            raise SystemExit(json.loads(refused.read())["error"]["message"]) from None
        except (URLError, OSError) as broken:
            print(f"({broken}; going on behind event {last or 'none'})")
        time.sleep(AGAIN)


def main() -> None:
    """Print a line for each event."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    options.add_argument("--url", default=os.environ.get("AIMA_URL", "http://127.0.0.1:9090"))
    options.add_argument("--since", default="10m", help="where to begin: 30s, 10m, 2h")
    options.add_argument("--type", action="append", default=[], help="type of event, such as service.*; repeatable")
    options.add_argument("--count", type=int, default=0, help="end after so many; 0: never")
    given = options.parse_args()
    for number, event in enumerate(events(given.url, given.since, given.type), 1):
        print(f"{event['recorded_at']}  {event['type']:<28} {event['stream']}", flush=True)
        if number == given.count:
            return


if __name__ == "__main__":
    main()
