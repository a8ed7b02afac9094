"""Who may use the gateway, and as which tenant.

A key is 256 random bits, so what is kept of it is its plain SHA-256: no salt and no slow hash is needed where
nobody can guess, and a leaked file opens no door. For the same reason a hash table is a safe way to compare:
how long a look-up takes could tell something about the digest that was sent, and nobody can choose a key by
its digest.
"""
