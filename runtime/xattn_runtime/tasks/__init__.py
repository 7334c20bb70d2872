"""Tasks: a bundle that is loaded, and answers.

`protocol.py` says what all of them can do, `table.py` opens the class that the manifest's task names, and a file of its
own says what each is. A row of `bundle/task_table.py` says everything else about it.
"""

from __future__ import annotations

from xattn_runtime.generate.options import DecodingOptions
from xattn_runtime.preprocess.prompts.chat import Turn
from xattn_runtime.preprocess.prompts.video import Video
from xattn_runtime.retrieval.match import Match
from xattn_runtime.tasks.answer import Answer, AnswerTiming
from xattn_runtime.tasks.caption import Caption, CaptionTask, CaptionTiming, ScoredText
from xattn_runtime.tasks.chat import Chat
from xattn_runtime.tasks.protocol import CaseResult, Task, TaskInput, TaskResult, Times
from xattn_runtime.tasks.retrieval import Classification, RetrievalTask
from xattn_runtime.tasks.sentiment import Sentiment, SentimentTask
from xattn_runtime.tasks.shared.image_encoder import EncodedImage
from xattn_runtime.tasks.shared.streaming import StreamedToken
from xattn_runtime.tasks.table import open_task
from xattn_runtime.tasks.vqa import VqaTask

__all__ = [
    "Answer",
    "AnswerTiming",
    "Caption",
    "CaptionTask",
    "CaptionTiming",
    "CaseResult",
    "Chat",
    "Classification",
    "DecodingOptions",
    "EncodedImage",
    "Match",
    "RetrievalTask",
    "ScoredText",
    "Sentiment",
    "SentimentTask",
    "StreamedToken",
    "Task",
    "TaskInput",
    "TaskResult",
    "Times",
    "Turn",
    "Video",
    "VqaTask",
    "open_task",
]
