"""What people see and take away from a run."""
