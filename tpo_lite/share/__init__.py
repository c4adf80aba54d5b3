"""Models to give away: exports that think by themselves and equal what was trained."""
