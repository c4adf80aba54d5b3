"""Where instructions come from, which are kept, and how they are cut into slices."""
