"""The sample functions, one module each; worker.py serves them."""
