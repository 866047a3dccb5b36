"""Tests of harvester.fleet."""
