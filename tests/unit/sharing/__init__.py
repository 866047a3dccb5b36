"""Tests of harvester.sharing."""
