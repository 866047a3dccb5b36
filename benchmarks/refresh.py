"""A year of 2,000 links refreshed with 300 calls a month, in virtual time: the nightly simulation, by itself.

python -m benchmarks.refresh
"""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-s", "-m", "nightly", "tests/simulation/test_refreshed_year.py"]))
