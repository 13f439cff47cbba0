"""Measuring: results that say where they come from, and checks that say what was promised."""
