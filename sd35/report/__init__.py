"""A window on one generation: a page of HTML that shows what happened between noise and picture.

Reading order: records (what is noted down), preview, then html, pictures and plot (how things are shown),
sections, page, recording (which watches a generation).
"""

from .page import as_page
from .recording import Recorder, Recording
from .records import BlockStatistics, Records, StepRecord

__all__ = ["BlockStatistics", "Recorder", "Recording", "Records", "StepRecord", "as_page"]
