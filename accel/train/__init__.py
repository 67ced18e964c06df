"""Training loops: resumable, deterministic, atomic checkpoints."""
