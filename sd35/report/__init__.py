"""A window on one generation: a page of HTML that shows what happened between noise and picture.

Reading order: recording (what is noted down), preview, then html, pictures and plot (how things are shown),
sections, page.
"""

from .page import as_page
from .recording import BlockStatistics, Recorder, Recording, StepRecord

__all__ = ["BlockStatistics", "Recorder", "Recording", "StepRecord", "as_page"]
