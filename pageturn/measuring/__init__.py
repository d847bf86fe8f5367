"""The parts of `pageturn.measures`: each reads one thing that a run leaves behind. Absent things are no error."""
