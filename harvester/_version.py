"""The version and the distribution's name, without an import: reading them costs a command nothing else."""

__version__ = "0.1.0"

DISTRIBUTION = "bitly-harvester"
"""The name on the package index. The distribution `harvester` there is somebody else's program, and installs its own
`harvester/__init__.py` and `harvester/_version.py`, which lacks this name.
"""
