"""What others get of a run: a model that thinks by itself and equals what was trained, and its place on the Hub."""
