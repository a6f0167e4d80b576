"""Between latent vectors, which evolve, and image embeddings, which are painted.

::

    space     LatentSpace: a principal component analysis of image embeddings
    avoid     embeddings to stay away from
    examples  pictures that a space was made of, to say a direction in words
    enough    how many pictures and components are enough
    fitting   making a space from embeddings, from a pickled PCA; what it looks like

``python -m rtevo.latent fit`` makes one from a folder of images, ``import`` from the prototype's pickle.
"""

from rtevo.latent.avoid import Avoid
from rtevo.latent.examples import Examples, examples_of
from rtevo.latent.fitting import draw, fit
from rtevo.latent.space import ORTHONORMAL_TOLERANCE, SCALINGS, LatentSpace

__all__ = ["ORTHONORMAL_TOLERANCE", "SCALINGS", "Avoid", "Examples", "LatentSpace", "draw", "examples_of", "fit"]
