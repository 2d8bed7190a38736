"""How the networks that are explained come about."""
