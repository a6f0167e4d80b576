"""From aligned volumes to one score for each image, using nothing that has not been measured yet.

A decoder is a folder: a reference volume, a mask and a weight map on one grid (:class:`Decoder`). The :class:`Scorer` takes aligned
volumes and image onsets as they come and gives each image's score.

::

    folder    the decoder folder: read, checked, written
    running   fits to all volumes so far, one volume at a time
    scorer    volumes and onsets in, scores out
"""

from rtevo.decode.folder import Decoder, write_decoder
from rtevo.decode.running import RunningFit
from rtevo.decode.scorer import Score, Scorer, pearson, response_window

__all__ = ["Decoder", "RunningFit", "Score", "Scorer", "pearson", "response_window", "write_decoder"]
