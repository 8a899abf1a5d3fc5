"""The loop and what it needs: optimiser, averaged weights, checkpoints, logs, evaluation."""
