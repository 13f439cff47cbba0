"""What the benchmark of the relay is made of: a fake engine, load, the systems compared, and what was promised."""
