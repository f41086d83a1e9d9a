"""What a run keeps on disk: its folder, its checkpoints, and the journal of a program."""
