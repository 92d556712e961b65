"""Certify: with confidence 1 - delta, the pruned model loses at most so much.

The path of candidates, dense to sparse, is fixed before held-out data is read. They are tested in this order, each
at the full level, until one fails (fixed-sequence testing; Maurer, Hothorn and Lehmacher 1995; as Learn-then-Test:
Angelopoulos et al., arXiv:2110.01052). If some candidate on the path loses too much, then a false certificate needs
the *first* such candidate to pass its own test, which has probability at most the level: no correction, and no
assumption that sparser is worse. The inner test is a member of `certifiers`.

What is evaluated: the dense model and one candidate on the same batches, so that pairs never come apart, even with a
loader that shuffles or augments; the dense scores are kept by content hash and reused for the next candidate.

The parts: `claim` what is claimed; `census` the data as found before any model reads it; `sample` the paired scores and
their independent units; `judge` one candidate; `certify` the path; `verify` the same again; `explain` in words;
`bootstrap` for corpus metrics.

Index conventions: i example, u independent unit (an example, or a group of dependent ones).
"""

from secateur._certify.bootstrap import bootstrap_interval as bootstrap_interval
from secateur._certify.certify import certify as certify
from secateur._certify.explain import explain as explain
from secateur._certify.verify import verify_certificate as verify_certificate

__all__ = ["bootstrap_interval", "certify", "explain", "verify_certificate"]
