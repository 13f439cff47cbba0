"""How to run each engine, seen from outside."""
