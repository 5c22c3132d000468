"""Work over several ranks: groups of one generation, dispatch of tokens, reduction of gradients. Knows no model.

Every wait here is bounded and watches for the end of its generation; buffers handed to an abandoned collective are
never touched again. Summation orders are fixed, so that replicas of an expert stay bitwise equal.
Next: `groups.py`.
"""
