"""Simulations: the real decision code under virtual time. Production never imports this, but for one command."""
