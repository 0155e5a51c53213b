"""How fast it is: each fast path beside the plain form that it replaces, and what a training costs."""
