"""Decision boundaries: how far, how curved, what they enclose (Fawzi, Moosavi-Dezfooli, Frossard & Soatto 2018).

The boundary between the region of class i (``from_class``) and class j (``to_class``) is the set F = 0 of the margin
F = f_j - f_i, negative inside the region of i. Curvatures are those of F: positive where the region of i is convex, as in a
ball, whose principal curvatures are all 1 / radius.
"""
