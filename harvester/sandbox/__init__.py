"""A fake Bitly on loopback for trials, demos and tests."""

from harvester.sandbox.clicks import metrics_for
from harvester.sandbox.server import CLIENT_SECRETS, Sandbox, SandboxOptions, serving

__all__ = ["CLIENT_SECRETS", "Sandbox", "SandboxOptions", "metrics_for", "serving"]
