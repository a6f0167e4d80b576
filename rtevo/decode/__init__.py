"""From aligned volumes to one score for each image, using nothing that has not been measured yet.

A decoder is a folder: a reference volume, a mask and a weight map on one grid (:class:`Decoder`). The :class:`Scorer` takes aligned
volumes and image onsets as they come and gives each image's score.

::

    folder      the decoder folder: read, checked, written
    scorer      volumes and onsets in, scores out, by one of two ways:
    separate      projection on the map, overlapping responses separated
    peak          mean of the volumes around the peak, correlated with the map
    nuisance    regressors of motion and drift, spikes; compartments: of white matter and fluid
    running     fits to all volumes so far, one volume at a time
    deconvolve  amplitudes of overlapping responses in one series; amplitudes: of one image, of many
    groups      nuisance terms that are used or not, by the evidence
    hrf         shape of a response
    learnt      values that the next run of a visit inherits
    quality     quality of the incoming data, and their agreement with the decoder's
    events      events of a training run, and targets
    categories  the categories that are decoded, their blocks, and how they are held out
    selection   maps on the voxels that separate categories, with nested cross-validation
    repeats     voxels whose responses repeat from run to run
    train       weight maps on all voxels, and their performance on held-out blocks
    fitting     the default of ``fit``: choose, write, draw; recorded: runs as training and scoring by hand see them
    scoring     recorded events scored as in a session, and the quality of the scores
    promise     quality of a folder's maps, for plans
    figures     one page about a decoder
    carry       a decoder on another day's grid; sampling: volumes and maps on other grids
    maps        one map, or an objective over several of one or several folders
    several     scores of such an objective; shared: the noise that maps share
    elsewhere   runs of other grids: today's reference, placement, a decoder folder for today
    imported    the noise of maps from elsewhere
    convert     decoders from elsewhere; unpickle reads a model without running it

``python -m rtevo.decode fit`` builds a decoder, ``score`` scores a recorded run, ``place`` carries a decoder to today's grid, ``import``
converts maps and models.
"""

from rtevo.decode.carry import carry, reorder, same_voxels, together
from rtevo.decode.deconvolve import Deconvolver, Grid
from rtevo.decode.folder import Decoder, read_map, write_decoder
from rtevo.decode.learnt import Learnt
from rtevo.decode.maps import load_decoder
from rtevo.decode.peak import pearson, response_window
from rtevo.decode.quality import Quality, differences, whole
from rtevo.decode.running import RunningFit
from rtevo.decode.score import Score
from rtevo.decode.scorer import METHODS, Method, Scorer
from rtevo.decode.several import SeveralScorer, scorer_of

__all__ = [
    "METHODS",
    "Decoder",
    "Deconvolver",
    "Grid",
    "Learnt",
    "Method",
    "Quality",
    "RunningFit",
    "Score",
    "Scorer",
    "SeveralScorer",
    "carry",
    "differences",
    "load_decoder",
    "pearson",
    "read_map",
    "reorder",
    "response_window",
    "same_voxels",
    "scorer_of",
    "together",
    "whole",
    "write_decoder",
]
