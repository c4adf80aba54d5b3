"""Where instructions come from, which of them are kept, and how they are divided into slices."""
