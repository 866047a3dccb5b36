"""A loop over a session of requests."""

import json
import sys

import requests

PARAMETERS = {"unit": "day", "units": "-1", "unit_reference": "2026-11-23T06:00:00+0000", "size": "50"}

list_path, base_url, out_path = sys.argv[1:4]
with open(list_path, encoding="utf-8") as links, open(out_path, "w", encoding="utf-8") as out:
    session = requests.Session()
    session.headers["Authorization"] = "Bearer benchmark"
    for line in links:
        link = line.strip()
        response = session.get(f"{base_url}/bitlinks/{link}/referrers", params=PARAMETERS, timeout=30)
        response.raise_for_status()
        out.write(json.dumps({"bitlink": link, **response.json()}) + "\n")
