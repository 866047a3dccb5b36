"""curl --parallel, a file an answer. It is given all URLs, knows no list, and writes no rows."""

import os
import sys

PARAMETERS = "unit=day&units=-1&unit_reference=2026-11-23T06:00:00%2B0000&size=50"
list_path, base_url, out_path = sys.argv[1:4]
os.mkdir(out_path)
with open(list_path, encoding="utf-8") as links, open(f"{out_path}.curl", "w", encoding="utf-8") as config:
    config.write('header = "Authorization: Bearer benchmark"\n')
    for line in links:
        link = line.strip()
        url = f"{base_url}/bitlinks/{link}/referrers?{PARAMETERS}"
        config.write(f'url = "{url}"\noutput = "{out_path}/{link.replace("/", "-")}.json"\n')
os.execvp(
    "curl", ["curl", "--parallel", "--parallel-max", "5", "--fail", "--no-progress-meter", "-K", f"{out_path}.curl"]
)
