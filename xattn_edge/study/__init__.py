"""The study: every mechanism and fusion under one budget, several seeds, and what that says about which to choose."""

from xattn_edge.study.plan import TASKS, StudyPlan
from xattn_edge.study.run import StudyReport, report_study, study

__all__ = ["TASKS", "StudyPlan", "StudyReport", "report_study", "study"]
