"""What the promises cost: CPU per call and peak memory, measured on the real command. See README.md."""
