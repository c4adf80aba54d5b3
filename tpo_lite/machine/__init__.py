"""What this machine has: devices, cards and memory, and whether it is ready for a run."""
