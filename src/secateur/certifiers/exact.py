"""The exact unconditional paired test: the most powerful here for 0/1 scores at a fixed number of examples.

H0: P(dense right, pruned wrong) - P(dense wrong, pruned right) > margin. Of the outcomes (losses, gains) in
the order of Tango's score limit it rejects as many as keep the error probability at most the level for *every*
discordance; that is computed, with a proof between grid points, in `secateur._exact`.

Source: Tango, Statistics in Medicine 17 (1998) 891; Nam, Biometrics 53 (1997) 1422; Buehler, JASA 52 (1957) 482;
Hsueh, Liu and Chen, Biometrics 57 (2001) 478; Lloyd and Moldovan, Statistics in Medicine 26 (2007) 3369.
"""

from __future__ import annotations

from secateur._exact import Exact as Exact


def exact() -> Exact:
    """The exact test. It looks once, at all examples; scores must be 0 or 1, examples independent, unweighted."""
    return Exact()
