"""Load for a live service, its users, the faults that befall it, and the referee of what it did (``__main__``)."""
