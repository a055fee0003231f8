"""What a run will need, before it runs: parameters, memory, tokens, operations and time of each step.

Nothing is guessed from formulas: each step is carried out on PyTorch's meta device, which computes shapes only, with
one and with two layers of the backbone; what autograd keeps and the operations that are counted grow by the difference
with every further layer. Only the time rests on an assumption, the share of the machine's matrix-product rate reached.
"""

from sellarec.plan.make import SHARE, Plan, make_plan, what_would_fit
from sellarec.plan.shape import RUNTIME, WORK, Shape, Step
from sellarec.plan.text import described, refusal

__all__ = ["RUNTIME", "SHARE", "WORK", "Plan", "Shape", "Step", "described", "make_plan", "refusal", "what_would_fit"]
