"""The data plane: the relay process, which carries inference traffic and hands every other path to the controller."""
