"""Asks ``health`` over and over, in a process of its own, so that nothing delays it; prints milliseconds as JSON."""

from __future__ import annotations

import http.client
import json
import sys
import time
from urllib.parse import urlsplit


def main() -> None:
    url, samples = urlsplit(sys.argv[1]), int(sys.argv[2])
    connection = http.client.HTTPConnection(url.hostname or "", url.port)
    times = []
    for _ in range(samples):
        begin = time.perf_counter()
        connection.request("GET", f"{url.path}health")
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        times.append(1000 * (time.perf_counter() - begin))
        time.sleep(0.005)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
