"""The whole run: the order of phases, smaller batches when memory runs out, results."""
