"""A pipeline of dlt's rest_api source, with the links as parent resource, into files."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dlt
from dlt.sources.rest_api import rest_api_source

PARAMETERS = {"unit": "day", "units": "-1", "unit_reference": "2026-11-23T06:00:00+0000", "size": "50"}
list_path, base_url, out_path = sys.argv[1:4]


@dlt.resource(name="links")  # type: ignore[untyped-decorator]
def links() -> Iterator[list[dict[str, str]]]:
    """Yield the links of the list."""
    with open(list_path, encoding="utf-8") as lines:
        yield [{"bitlink": line.strip()} for line in lines]


source: Any = rest_api_source(
    {
        "client": {"base_url": base_url, "auth": {"type": "bearer", "token": "benchmark"}, "paginator": "single_page"},
        "resources": [
            links(),
            {
                "name": "referrers",
                "max_table_nesting": 0,
                "endpoint": {
                    "path": "bitlinks/{resources.links.bitlink}/referrers",
                    "params": PARAMETERS,
                    "data_selector": "$",
                },
                "include_from_parent": ["bitlink"],
                "parallelized": True,
            },
        ],
    }
)
out = Path(out_path).absolute()
dlt.config["runtime.dlthub_telemetry"] = False
dlt.config["normalize.data_writer.disable_compression"] = True
pipeline = dlt.pipeline(
    pipeline_name="bench",
    pipelines_dir=str(out.with_name("pipelines")),
    destination=dlt.destinations.filesystem(bucket_url=out.as_uri()),
    dataset_name="rows",
)
pipeline.run(source.with_resources("referrers"), loader_file_format="jsonl")
