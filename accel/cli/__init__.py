"""The `accel` command: one file a verb."""
