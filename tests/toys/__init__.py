"""Small peers for tests of one domain: real domains on a real bus that know just enough to answer.

They are Domain values like any other, so that what is tested runs over the wire as it always does.
"""
