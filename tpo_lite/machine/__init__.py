"""What this machine has: device, cards, memory, and whether it is ready."""
