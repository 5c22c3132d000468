"""The simulation itself under test: seeds that must hold, and laws that must be able to fail."""
