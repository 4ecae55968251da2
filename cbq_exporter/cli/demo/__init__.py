"""``demo``: what the product does, in one minute, with nothing but real parts."""
